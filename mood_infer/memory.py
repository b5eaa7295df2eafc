"""Where a scan is computed, and how to go on with less when a GPU's memory runs out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Room:
    """Where things are while a scan is scored.

    Attributes:
        compute: the device of the networks.
        keep: the device of the scan and of the map that its windows are added to.
        batch: windows at once.
    """

    compute: torch.device
    keep: torch.device
    batch: int

    def less(self) -> tuple["Room", str] | None:
        """The next smaller way and a word for it; None where there is none."""
        cpu = torch.device("cpu")
        if self.batch > 1:
            batch = self.batch // 2
            return replace(self, batch=batch), f"batches of {batch} were used"
        if self.keep != cpu:
            return replace(self, keep=cpu), "the map was kept in the computer's own memory"
        if self.compute != cpu:
            return replace(self, compute=cpu), "the CPU was used"
        return None


class Memory:
    """Does work in a room, and again in a smaller one whenever a GPU's memory does not suffice.

    Attributes:
        room: the one in use; it never grows again.
        warnings: one sentence for each step down.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.warnings: list[str] = []

    def attempt(self, work: Callable[[Room], Result]) -> Result:
        """What ``work`` returns for the largest room that suffices; it may be called many times.

        Raises:
            torch.OutOfMemoryError: not even the smallest one does.
        """
        while True:
            try:
                return work(self.room)
            except torch.OutOfMemoryError:
                smaller = self.room.less()
                if smaller is None:
                    raise
            # only here, after the error and all that its traceback holds are gone
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.room, way = smaller
            self.warnings.append(f"the GPU's memory was too small, so {way}")
