"""Several processes of one machine on one folder of scans, started by ``torchrun``: who does which scan.

The ranks agree through the launcher's own key-value store; they send each other nothing else. A rank takes
the next scan when it has room for one, so a slow scan holds nobody up.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.distributed import PrefixStore, Store, is_torchelastic_launched  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mood_infer.errors import UserError

POLL_SECONDS = 0.2


class Share:
    """The scans that one process does: all of them, in their order, if it is the only one."""

    alone = True
    record_name = "run.json"

    def order(self, scans: Sequence[Path]) -> Iterator[int]:
        """Indices of the scans to read, one when there is room for it; each may turn out to be taken."""
        return iter(range(len(scans)))

    def take(self, scan: Path) -> bool:
        """Whether this process is to score the scan, and so no other."""
        return True

    def once(self, action: Callable[[], None]) -> None:
        """Let one process do this; it is done when this returns."""
        action()

    def leave(self) -> None:
        """Wait until every process has come this far."""


class RankShare(Share):
    """The scans of one of many ranks on one machine.

    A scan is first assigned, by counting, so that it can be read ahead, and taken when its scoring begins.
    When all are assigned, a rank without work takes those not begun: behind a slow scan, or of a dead rank.
    """

    alone = False

    def __init__(self, store: Store, rank: int, ranks: int) -> None:
        self._store = store
        self._ranks = ranks
        self.record_name = f"run-{rank}.json"

    def order(self, scans: Sequence[Path]) -> Iterator[int]:
        while (index := self._store.add("assigned", 1) - 1) < len(scans):
            yield index
        yield from (n for n, scan in enumerate(scans) if not self._store.check([f"taken/{scan.name}"]))

    def take(self, scan: Path) -> bool:
        return self._store.add(f"taken/{scan.name}", 1) == 1

    def once(self, action: Callable[[], None]) -> None:
        if self._store.add("first", 1) == 1:
            action()
            self._store.add("once", 1)
        self._wait("once", 1)

    def leave(self) -> None:
        """A rank that ends with an error ends all others, so those who have met one wait for the rest."""
        self._store.add("ended", 1)
        self._wait("ended", self._ranks)  # of one that died nobody waits: the launcher ends them all

    def _wait(self, key: str, count: int) -> None:
        while self._store.add(key, 0) < count:
            time.sleep(POLL_SECONDS)  # the store's own waiting does not listen to signals


def join(with_gpu: bool = True) -> Share:
    """What ``torchrun`` left to this process; all, without it.

    Args:
        with_gpu: whether it is to have a GPU, of its own if there are enough.

    Raises:
        UserError: the processes are on several machines, whose launchers do not restart them together.
    """
    if not is_torchelastic_launched():
        return Share()
    machines = int(os.environ["GROUP_WORLD_SIZE"])
    if machines > 1:
        raise UserError(
            f"torchrun runs on {machines} machines, but only processes of one machine share scans; "
            "give each a torchrun --standalone with a part of the scans and an output folder of its own."
        )
    if with_gpu and torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # one that is full is told of when the networks are loaded
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, ranks = next(rendezvous("env://"))
    # ranks that the launcher starts again count anew, though it may keep the store
    prefix = f"mood-infer/{os.environ['TORCHELASTIC_RESTART_COUNT']}/{ranks}"
    return RankShare(PrefixStore(prefix, store), rank, ranks)
