"""One process at a time, among those that share files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock, which ends with the process.

    File systems of networks may keep out only processes of the same machine.

    Args:
        path: a folder, or a file, which is made if missing.
        wait: until no other process holds it.

    Yields:
        Whether it is held; without waiting another process may have it.

    Raises:
        OSError: the path may not be opened, or its file system knows no locks.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _lock(handle, wait)
    finally:
        os.close(handle)


def _lock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
