"""A folder, or a file, that appears whole or not at all; and what may not be written over.

A new folder or file is made beside its place, and renamed. A saved model takes this file with it, as it does `blocks`.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def require_free(target: str | os.PathLike, force: bool = False, reads: Iterable[Path] = ()) -> Path:
    """The folder to write, as an absolute path; a link to a folder is followed.

    Args:
        force: it may have files in it, to be replaced.
        reads: the files and folders that the run reads.
    """
    target = require_apart(target, reads)
    place_for(target)
    if target.is_dir() and any(target.iterdir()):
        if not force:
            raise ValueError(f"{target} exists and isn't empty; save elsewhere or replace it with force=True")
        _require_expendable(target)
    return target


def require_apart(target: str | os.PathLike, reads: Iterable[Path]) -> Path:
    """The absolute path of a file or folder to write; a ValueError if it is, holds or lies in what the run reads."""
    target = Path(target).resolve()
    for path in map(Path, reads):
        places = [path, *(path.iterdir() if path.is_dir() else [])]  # a model's files may be links
        if target.is_relative_to(path.resolve()) or any(place.resolve().is_relative_to(target) for place in places):
            raise ValueError(f"{target} is, holds or lies in {path}, which this run reads; write to another place")
    return target


def require_file(
    target: str | os.PathLike,
    force: bool | None = None,
    reads: Iterable[Path] = (),
    kind: tuple[str, str] | None = None,
) -> Path:
    """The file to write, as an absolute path; a link to a file is followed.

    Args:
        force: a file that exists may be replaced; None where the caller has no such option.
        reads: the files and folders that the run reads.
        kind: what such a file is called, and how it begins; one that begins so may be replaced without `force`.
    """
    target = require_apart(target, reads)
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}")
    if not target.exists() or (target.is_file() and force):
        return target
    if not target.is_file():
        raise ValueError(f"{target} is a {'folder' if target.is_dir() else 'device'}; give the name of a file")
    if kind is None:
        remedy = "" if force is None else ", or replace it with force=True"
        raise ValueError(f"{target} exists; write to another file{remedy}")
    with open(target, "rb") as file:
        begins = kind[1].encode()
        if not begins.startswith(file.read(len(begins))):
            raise ValueError(f"{target} exists and isn't {kind[0]} of minislice; write to another file")
    return target


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A new file to write to; it becomes `target` on the disk when the block ends, or vanishes if the block fails.

    A killed process leaves the new file (".NAME.partial-...") beside the target. An OSError names `target`.
    """
    target = Path(target).resolve()
    new = target.with_name(_unfinished(target))
    with writing(target):
        try:
            new.touch()
            yield new
            sync(new)
            new.replace(target)
            sync(target.parent)
        finally:
            new.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raise one kind of error, with the target's name, where the system refuses a write."""
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers, in Rust, and torch.save raise errors of their own for what the system refuses.
        if isinstance(error, OSError) or re.search(r"\(os error |PytorchStreamWriter|unexpected pos", str(error)):
            raise OSError(f"can't write {target}: {error}") from error
        raise


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name == "nt":  # Windows opens no folder, and waits for no file that is only read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_for(target: Path) -> Path:
    """The target's parent; a ValueError if no folder can be made there, or the target can't be replaced."""
    os.fspath(target).encode()  # a ValueError if the name isn't UTF-8: safetensors could write nothing there
    if target == Path.cwd():
        raise ValueError(f"{target} is the current directory, which can't be replaced whole; save to a folder in it")
    try:
        if target.exists() and not target.is_dir():
            raise ValueError(f"{target} is a file; give a folder to save to")
        unmake(make(target.parent / _unfinished(target)))
    except OSError as error:
        above = next(parent for parent in target.parents if os.path.exists(parent))
        reason = error.strerror if os.path.isdir(above) else f"{above} is a file"
        raise ValueError(f"can't write {target}: {reason}; save to another folder") from error
    return target.parent


def make(folder: Path) -> list[Path]:
    """Make a folder and the parents that are missing. Returns what was made, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        unmake(made)
        raise
    return made


def unmake(made: list[Path]) -> None:
    """Remove the folders that `make` made, unless something lies in them."""
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def whole_folder(target: str | os.PathLike, force: bool = False) -> Iterator[Path]:
    """A new folder to write to; it becomes `target` when the block ends, or vanishes if the block fails.

    A killed process leaves the new folder (".NAME.partial-...") beside the target.

    Args:
        force: replace a target that has files in it; it stays as it is until the new folder is complete.
    """
    target = require_free(target, force)
    new = target.with_name(_unfinished(target))
    try:
        with writing(target):
            make(new)
            yield new
    except BaseException:  # also a Ctrl-C
        shutil.rmtree(new, ignore_errors=True)
        raise
    try:
        put_in_place(new, require_free(target, force))  # something may have appeared there meanwhile
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}. The new folder is whole: it is {new}; move it") from error
    except KeyboardInterrupt:
        shutil.rmtree(new, ignore_errors=True)
        raise


def put_in_place(new: Path, target: Path) -> None:
    """Rename a finished folder to the target, and delete what was there."""
    old = target.with_name(_unfinished(target))
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:  # also after a Ctrl-C
        if old.exists() and not target.exists():
            old.rename(target)
        elif not new.exists():
            shutil.rmtree(old, ignore_errors=True)


def _unfinished(target: Path) -> str:
    """A new name beside the target, for what will be renamed to it, or what it replaced."""
    return f".{target.name}.partial-{uuid.uuid4().hex[:8]}"


def _require_expendable(target: Path) -> None:
    """Raise a ValueError where `force` would delete a git repository, the current or the home directory."""
    for what, path in {"the current directory": Path.cwd(), "your home directory": Path.home()}.items():
        if path.resolve().is_relative_to(target):
            raise ValueError(f"--force would delete {target}, which is or holds {what}; save to another folder")
    for folder, folders, files in os.walk(target):
        if ".git" in (*folders, *files):
            raise ValueError(f"--force would delete the git repository {folder}; save to another folder")
