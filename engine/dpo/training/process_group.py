"""The processes that train together, and what they tell each other. Imports torch only where several do.

One process is `SINGLE_PROCESS`: then everything here returns at once, and nothing is sent.
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
    """This process among those that train. What is sent needs torch's process group, which TRL's trainer starts."""

    rank: int = 0
    """From 0; the first one writes."""
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.world_size
        distributed.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """What the first process has."""
        if self.world_size == 1:
            return value
        from torch import distributed

        sent: list[Any] = [value]
        distributed.broadcast_object_list(sent, src=0)
        return sent[0]  # type: ignore[no-any-return]

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
        """Until all processes are here."""
        if self.world_size > 1:
            self.gather(None)

    def stop_requested(self, stop: StopToken) -> bool:
        """Whether one of them was asked to stop; then all are, so that all end at the same step."""
        if any(self.gather(stop.requested)):
            stop.request("asked by the process that started the training")
        return stop.requested


SINGLE_PROCESS = ProcessGroup()
