"""One process at a time: locks that the system releases when a process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import TrainingError


@contextmanager
def locked(path: Path, subject: Path) -> Iterator[None]:
    """Hold the lock file `path`, which has the holder's process id, for work on `subject`.

    `TrainingError` names the process that holds it. The file is deleted at the end; one that a killed process left is
    no lock. Network file systems must know `flock`.
    """
    descriptor = _opened(path, subject)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes, so that nobody locks a file that is then deleted
        os.close(descriptor)


def _opened(path: Path, subject: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise TrainingError(
                f"{subject} is in use by process {holder}; wait until it ends, or name another folder"
            ) from None
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # it was deleted between opening and locking
