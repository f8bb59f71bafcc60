"""A folder, or a file, that appears whole or not at all; and what may not be written over.

It is made beside its place, and renamed. A mount point (a container's volume) can't be renamed; there the new folder is
made inside, and its files are moved up one by one. No loader takes the folder for a model before `config.json` is
there, so this one goes first when an old model is replaced, and comes last: a process that is killed in between leaves
a folder that doesn't load.

A saved model takes this file with it, as it does `blocks`.
"""

import errno
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

    Raises:
        ValueError: it can't be written to; it is, holds or lies in what the run reads; it has files in it and no
            `force` is given; or `force` would delete a git repository, the current or the home directory.
    """
    target = require_apart(target, reads)
    place_for(target)
    if target.is_dir() and contents(target):
        if not force:
            raise ValueError(
                f"{target} exists and isn't empty; save to another folder, or replace it with --force (force=True)"
            )
        _require_expendable(target)
    return target


def require_apart(target: str | os.PathLike, reads: Iterable[Path]) -> Path:
    """The absolute path of a file or folder to write.

    Raises:
        ValueError: it is, holds or lies in one of the files and folders that the run reads.
    """
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

    Raises:
        ValueError: it is, holds or lies in what the run reads; its folder isn't there; it is a folder or a device; it
            exists and may not be replaced.
    """
    target = require_apart(target, reads)
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}")
    if not target.exists() or (target.is_file() and force):
        return target
    if not target.is_file():
        raise ValueError(f"{target} is a {'folder' if target.is_dir() else 'device'}; give the name of a file")
    if kind is None:
        remedy = "" if force is None else ", or replace it with force"
        raise ValueError(f"{target} exists; write to another file{remedy}")
    with open(target, "rb") as file:
        begins = kind[1].encode()
        if not begins.startswith(file.read(len(begins))):
            raise ValueError(f"{target} exists and isn't {kind[0]} of minislice; write to another file")
    return target


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A new file to write to; it becomes `target` on the disk when the block ends, or vanishes if the block fails.

    A killed process leaves the new file (".NAME.partial-...") beside the target.

    Raises:
        OSError: the system refused a write; the message names `target`.
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
    """Have what was written to a file, or a folder's list of files, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_for(target: Path) -> Path:
    """The folder to make the new one in: the target's parent, or the target itself where that can't be renamed.

    It can't be if it is a mount point, or if its parent may not be written to. The current directory isn't renamed
    either: a shell would be left in the old one.

    Raises:
        ValueError: neither can be written to; it says why.
    """
    require_utf8(target)
    try:
        if target.exists() and not target.is_dir():
            raise ValueError(f"{target} is a file; give a folder to save to")
        stays = target.is_dir() and (target == Path.cwd() or not _can_be_renamed(target))
        place = target if stays else target.parent
        unmake(make(place / _unfinished(target)))
    except OSError as error:
        above = next(parent for parent in target.parents if os.path.exists(parent))
        reason = error.strerror if os.path.isdir(above) else f"{above} is a file"
        raise ValueError(f"can't write {target}: {reason}; save to another folder") from error
    return place


def require_utf8(path: Path) -> None:
    """Raise a ValueError where a folder's name isn't UTF-8: safetensors and torch can't open what is in it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{os.fspath(path)!a}: this name isn't UTF-8; rename the folder, or use another") from error


def contents(folder: Path) -> list[Path]:
    """What is in a folder, but for the file system's own, and for unfinished folders that are to become this one."""
    unfinished = f".{folder.name}.partial"
    return [path for path in folder.iterdir() if path.name != "lost+found" and not path.name.startswith(unfinished)]


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
    """Remove what `make` made, as far as it is empty."""
    for folder in made:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def whole_folder(target: str | os.PathLike, force: bool = False) -> Iterator[Path]:
    """A new folder to write to; it becomes `target` when the block ends, or vanishes if the block fails.

    Whoever looks at the target sees nothing, or what was there before, or all of the new; of a mount point, see the top
    of this file. A killed process leaves the new folder (".NAME.partial-...") beside or in the target.

    Args:
        force: replace a target that has files in it; it stays as it is until the new folder is complete.

    Raises:
        ValueError: see `require_free`; if files appeared in the target meanwhile, the new folder is kept beside it.
        OSError: the system refused a write; the disk is full, for example.
    """
    target = require_free(target, force)
    new = place_for(target) / _unfinished(target)
    is_kept = False
    try:
        with writing(target):
            make(new)
            yield new
        try:
            put_in_place(new, require_free(target, force))  # something may have appeared there meanwhile
        except (ValueError, OSError) as error:
            is_kept = True
            raise ValueError(f"{error}. The new folder is whole: it is {new}; move it") from error
    finally:
        if not is_kept:
            shutil.rmtree(new, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Have a finished folder, made in `place_for(target)` or below, be the target, and replace what is there."""
    if target in new.parents:
        _move_up(new, target)
        return
    old = target.with_name(_unfinished(target))
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:  # also after a Ctrl-C
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _unfinished(target: Path) -> str:
    """A new name for what is to become the target, or no longer is."""
    return f".{target.name}.partial-{uuid.uuid4().hex[:8]}"


def _move_up(new: Path, target: Path) -> None:
    for path in sorted(contents(target), key=lambda path: path.name != "config.json"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in sorted(new.iterdir(), key=lambda path: path.name == "config.json"):
        path.rename(target / path.name)
    new.rmdir()


def _can_be_renamed(folder: Path) -> bool:
    """Tried without doing it: to rename a folder onto one with something in it fails, and how it fails tells."""
    if folder == folder.parent:
        return False
    other = folder.with_name(_unfinished(folder))
    made = []
    try:
        made = make(other / "something")
        folder.rename(other)
    except OSError as error:
        return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
    finally:
        unmake(made)
    raise AssertionError(f"{folder} was renamed to {other}, which has something in it")


def _require_expendable(target: Path) -> None:
    for what, path in {"the current directory": Path.cwd(), "your home directory": Path.home()}.items():
        if path.resolve().is_relative_to(target):
            raise ValueError(f"--force would delete {target}, which is or holds {what}; save to another folder")
    for folder, folders, files in os.walk(target):
        if ".git" in (*folders, *files):
            raise ValueError(f"--force would delete the git repository {folder}; save to another folder")
