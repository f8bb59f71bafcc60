"""What a process gives up before it runs a student's code.

`enter` needs Linux, and a kernel that lets this user make namespaces. The process then sees no files but the standard
library and NumPy, which it can't write to, and an empty folder; no network; and no process but itself. `drop` works on
every Unix: root becomes nobody, no process can be started, and memory, processor time and files have limits.

`child.py` loads this file from beside itself, without the package: it needs the standard library alone.
"""

import contextlib
import ctypes
import os
import signal
import sys
from typing import BinaryIO

NOBODY = 65534
WORK = "/submission"  # in the new file system, where nothing else is called so
FILES = 16 << 20  # bytes that fit into the new file system, and into one file anywhere

# From Linux's sched.h, mount.h, prctl.h and capability.h.
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
SET_PDEATHSIG, SET_NO_NEW_PRIVS, CAPABILITY_VERSION_3 = 1, 38, 0x20080522


def enter(folder: str, visible: list[str], pipes: tuple[BinaryIO, ...], wall: int) -> None:
    """Move into namespaces, with a file system built in an empty `folder`; returns in a new process, the first there.

    The calling process stays outside. It closes its `pipes`, kills the new one at SIGTERM or after `wall` seconds, and
    ends as that ended. After an OSError, where the system doesn't allow it, it has to be given up.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("namespaces need Linux")
    root, uid, gid = os.geteuid() == 0, os.geteuid(), os.getegid()
    _call("unshare", NEWNS | NEWPID | NEWNET | NEWIPC | (0 if root else NEWUSER))
    if not root:  # the same user inside as outside
        for name, text in {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _build(folder, visible)
    _fork(pipes, wall)
    os.setsid()  # a signal to its own process group must not reach the one outside
    processes = os.open("/proc", os.O_RDONLY)
    os.chdir(folder)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", DETACH)  # the old root, which lay on top of the new one
    os.chdir(WORK)
    _become_nobody()
    _no_further_namespaces(processes, inside=not root)


def _build(folder: str, visible: list[str]) -> None:
    """Mount a file system in memory at `folder`, and in it the visible folders, at the paths that they have."""
    os.umask(0o022)  # whoever the process becomes must be able to walk through the folders made here
    _mount(None, "/", None, RECURSIVE | PRIVATE)  # nothing below is seen outside
    _mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, f"size={FILES},mode=755")
    os.mkdir(folder + WORK)
    os.chmod(folder + WORK, 0o777)
    for path in visible:
        place = folder + path
        os.makedirs(place, exist_ok=True)
        _mount(path, place, None, BIND)
        kept = os.statvfs(place).f_flag & (NOSUID | NODEV | NOEXEC)  # a remount may add to these, not take away
        _mount(None, place, None, BIND | REMOUNT | RDONLY | kept)
        for packages in ("site-packages", "dist-packages"):  # where minislice itself may be installed
            if os.path.isdir(f"{place}/{packages}"):
                _mount("tmpfs", f"{place}/{packages}", "tmpfs", NOSUID | NODEV, "size=64k,mode=755")


def _fork(pipes: tuple[BinaryIO, ...], wall: int) -> None:
    signals = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # one that comes early waits for sigtimedwait
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return
    for pipe in pipes:  # the grader reads until every copy is closed
        pipe.close()
    signal.sigtimedwait(signals, wall)  # the grader is quicker, unless it was itself killed
    os.kill(child, signal.SIGKILL)  # nothing happens if it has ended
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


def _become_nobody() -> None:
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a container may have no other user: its root is an ordinary one outside
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)


def _no_further_namespaces(processes: int, inside: bool) -> None:
    """Forbid another user namespace: whoever makes one may mount there, and fill the machine's memory with files.

    It can be forbidden only `inside` a user namespace. `processes`, a descriptor of /proc, is closed here.
    """
    with contextlib.suppress(OSError):  # where this user can't make one, there is nothing to forbid
        if not inside:
            _call("unshare", NEWUSER)
        limit = os.open("sys/user/max_user_namespaces", os.O_WRONLY, dir_fd=processes)
        os.write(limit, b"0")
        os.close(limit)
    os.close(processes)


def drop(memory: int, cpu: int) -> None:
    """Give up root, every privilege and the right to start processes; limit memory (bytes) and processor seconds."""
    if not hasattr(os, "geteuid"):
        return  # Windows has none of this
    import resource

    _become_nobody()
    if sys.platform.startswith("linux"):
        _call("prctl", SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        _call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    limits = {"NPROC": 0, "AS": memory, "CPU": cpu, "FSIZE": FILES, "NOFILE": 64, "CORE": 0}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a limit that this system doesn't know, or has lower
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that returns 0, or raise its OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
