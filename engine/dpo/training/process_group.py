"""The processes that train together, and their collective operations. Imports torch only if there are several.

For `SINGLE_PROCESS`, every operation returns at once and communicates nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from engine.run.stop import StopToken

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process's view of the group. Collectives use torch's default process group, which TRL's trainer initialises."""

    rank: int = 0
    """From 0; rank 0 writes files and reports events."""
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        if self.world_size == 1:
            return value
        from torch import distributed

        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def sum(self, values: list[float], device: torch.device) -> list[float]:
        """The sums over all processes."""
        if self.world_size == 1:
            return values
        import torch
        from torch import distributed

        sums = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(sums)
        return [float(total) for total in sums]

    def barrier(self) -> None:
        """Wait until all processes arrive."""
        if self.world_size > 1:
            self.gather(None)

    def stop_requested(self, stop: StopToken) -> bool:
        """Whether any process was asked to stop; if so, all of them stop at the same step."""
        if any(self.gather(stop.requested)):
            stop.request("requested by the process that started training")
        return stop.requested


SINGLE_PROCESS = ProcessGroup()
