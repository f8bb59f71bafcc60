"""One run at a time writes to an output."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keep other runs from a file or folder, with an empty file ".NAME.lock" beside it; a ValueError if one holds it.

    The system releases the lock of a process that dies. The file is deleted while the lock is still held: a run that
    has opened it already is then refused, and no third run slips in.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another run writes to {target}; wait for it, or give another --out") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
