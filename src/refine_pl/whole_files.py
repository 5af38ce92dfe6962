"""Files and folders that are whole whenever they can be seen, whatever ends the process.

Everything is written under a scratch name beside its target (a temporary folder may lie on another
file system, where a move is a copy that can be cut off), flushed to the disk, and renamed. Until
then the old file stays.

A scratch name tells who writes it, so that what a dead process left can be removed by the next one
that writes there, and what a living one writes is left alone:

    .last.ckpt.4f0c21d9-3170-86552-1.scratch     machine, process, its start, a number

Of a process on another machine nothing can be known: its scratch files are removed a week after
they were last changed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from refine_pl.errors import UserError

_ELSEWHERE_DEAD_S = 7 * 24 * 3600.0
_NAME = re.compile(r"\.(?P<target>.+)\.(?P<who>[0-9a-f]{8}-\d+-\d+)-\d+\.(?P<kind>scratch|old)")
# What stands between a process and the disk, rather than between it and what it reads.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_numbers = itertools.count()
_cleaned: set[Path] = set()


class WriteError(UserError):
    """A file cannot be written, such as on a full disk; the one that it was to replace is whole."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; what was written there becomes ``path`` if nothing went wrong.

    The folder is made if it is not there, and scratch files of dead processes are removed from it.

    Raises:
        WriteError: the folder cannot be written, or the disk is full.
    """
    with _explained(path):
        scratch = scratch_path(path)
        try:
            with open(scratch, "xb"):  # before any work is done for it
                pass
            yield scratch
            replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace a file, or make it; it is whole at any time.

    Args:
        path: the file.
        content: bytes, or a text that is written as UTF-8 (a lone surrogate as its number).

    Raises:
        WriteError: it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    with whole_file(path) as scratch:
        scratch.write_bytes(content)


@contextlib.contextmanager
def filled_folder(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write files to; they are moved into ``folder`` if nothing went wrong.

    Args:
        folder: may hold other files already, which stay; made if it is not there.
        last: the name of the file that is moved last: where it is, all others are too.

    Raises:
        WriteError: the folder cannot be written, or the disk is full.
    """
    with _explained(folder):
        scratch = scratch_path(folder / last)
        try:
            scratch.mkdir()
            yield scratch
            files = sorted(scratch.iterdir(), key=lambda file: file.name == last)
            for file in files:
                replace(file, folder / file.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def scratch_path(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses; its folder is made, and cleaned once."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() not in _cleaned:
        _cleaned.add(folder.resolve())
        clean(folder)
    return _hidden(path, "scratch")


def replace(scratch: Path, path: Path) -> None:
    """Let a scratch file or folder become ``path``, on the disk too.

    A file takes the place of another one at once. A folder cannot: the old one is renamed before,
    and removed after. Where a process ends between the two, :func:`clean` brings the old one back.
    """
    flush(scratch)
    old = _hidden(path, "old")
    if path.is_dir() and not path.is_symlink():
        os.replace(path, old)
    elif scratch.is_dir():
        path.unlink(missing_ok=True)
    os.replace(scratch, path)
    _sync(path.parent)
    if old.exists():
        remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder, so that nothing is ever there that is half removed."""
    if path.is_dir() and not path.is_symlink():
        hidden = _hidden(path, "scratch")
        os.replace(path, hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or every file of a folder, is on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            flush(entry)
    _sync(path)


def clean(folder: Path) -> list[str]:
    """Remove what dead processes left half written in a folder; the names of what was removed.

    A folder that one of them had put aside in order to replace it is brought back.
    """
    removed: list[str] = []
    entries: list[Path] = []
    with contextlib.suppress(OSError):  # there is no such folder, or it cannot be read
        entries = sorted(folder.iterdir())
    for entry in entries:
        name = _NAME.fullmatch(entry.name)
        # Another process may clean the same folder.
        with contextlib.suppress(OSError):
            if name is None or not _is_dead(name["who"], entry):
                continue
            if name["kind"] == "old" and not (folder / name["target"]).exists():
                os.rename(entry, folder / name["target"])
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry.name)
    return removed


def _hidden(path: Path, kind: str) -> Path:
    name = path.name[:180]  # a name may have 255 bytes
    return path.with_name(f".{name}.{_me(os.getpid())}-{next(_numbers)}.{kind}")


@cache
def _me(pid: int) -> str:
    """The machine and the process; asked with its number, because a fork has another one."""
    return f"{_machine()}-{pid}-{_started(pid) or 0}"


@cache
def _machine() -> str:
    """Of processes that see each other's numbers: a host since it was started, or a container."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = os.readlink("/proc/self/ns/pid")
    words = f"{socket.gethostname()} {boot} {space}"
    return hashlib.blake2b(words.encode(), digest_size=4).hexdigest()


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where that is not told."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _is_dead(who: str, entry: Path) -> bool:
    machine, pid, started = who.split("-")
    if machine != _machine():
        return time.time() - entry.lstat().st_mtime > _ELSEWHERE_DEAD_S
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it is somebody else's
    now = _started(int(pid))
    return int(started) != 0 and now is not None and now != int(started)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot flush a folder, and say so.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.EACCES)):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error, path.parent)
        if reason is None:
            raise
        raise WriteError(
            f"{path} cannot be written: {reason}",
            allowed="a folder that can be written, on a disk with room; what was there before is "
            "unharmed",
            way_out="free some space, or choose a folder elsewhere",
        ) from error


def _reason(error: BaseException, folder: Path) -> str | None:
    """What the disk said, if it is the disk that failed; libraries tell it in words of their own.

    Errors of other files than those in ``folder`` are not explained.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and (
            current.errno in _DISK or str(current.filename or "").startswith(str(folder))
        ):
            return current.strerror or str(current)
        for code in _DISK:
            if os.strerror(code) in str(current):
                return os.strerror(code)
        current = current.__cause__ or current.__context__
    return None
