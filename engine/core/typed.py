"""Check untrusted plain data against types, so that a string is never taken for a number."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def validated(shape: type[T], data: Any, *, partial: bool = False) -> T:
    """Plain data as `shape`: a dataclass, a pydantic model, dict[str, int], … Unknown fields are dropped.

    partial   allow missing fields; the return value is then meaningless

    Raises ValueError, which names the first field of a wrong type.
    """
    try:
        return cast(T, _adapter(cast(Hashable, shape)).validate_python(data))
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            if not partial or fault["type"] != "missing":
                where = ".".join(map(str, fault["loc"]))
                raise ValueError(f"{where}: {fault['msg']}" if where else fault["msg"]) from None
        return cast(T, data)


@cache
def _adapter(shape: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, shape))
