"""What the machine refuses: a file that cannot be written, a disk that is full, too little memory.

Libraries raise these from anywhere, and they are never a fault of the program. What is refused
elsewhere with more to say about it (which setting names the folder) does not come here.
"""

from __future__ import annotations

import errno
import os
import traceback

from refine_pl.errors import UserError

_FULL = "free some space, or choose another disk"
_PATH = "check this path in the settings: what is there, and who may write to it"
_WAYS_OUT = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _PATH,
    errno.EACCES: _PATH,
    errno.EPERM: _PATH,
    errno.EEXIST: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EISDIR: _PATH,
    errno.ELOOP: _PATH,
    errno.ENAMETOOLONG: "a shorter name",
    errno.EIO: "look at the disk: the system log may say more",
    errno.ESTALE: "look at the network file system",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "close other programs: the machine has too many open files",
    errno.EAGAIN: "fewer processes: data.num_workers, trainer.devices",
}
_MEMORY = (
    "smaller model.microbatch_size, sequences or model, or model.backbone.activation_checkpointing"
)
# How allocators that have no error class of their own begin or end.
_NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory")


class MachineError(UserError):
    """The machine does not have, or does not allow, what a run needs."""


def machine_error(error: BaseException) -> MachineError | None:
    """What the machine refused, if ``error`` or what it was raised from says that it did."""
    current: BaseException | None = error
    while current is not None:
        found = _of(current)
        if found is not None:
            return found
        current = current.__cause__
    return None


def _of(error: BaseException) -> MachineError | None:
    said = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        way_out = _WAYS_OUT.get(error.errno) or (_PATH if _makes_a_folder(error) else None)
        if way_out is None:
            return None
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
        text = f"{' and '.join(names)}: {os.strerror(error.errno)}" if names else said
        return MachineError(text, way_out=way_out)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in said.lower() for text in _NO_MEMORY)
    ):
        text = said.partition("DefaultCPUAllocator: ")[2] or said
        return MachineError(f"out of memory: {text[:300]}".removesuffix(": "), way_out=_MEMORY)
    return None


def _makes_a_folder(error: OSError) -> bool:
    """Whether a folder could not be made: a file that is not there may be a fault of ours."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return names[-1:] in (["makedirs"], ["mkdir"])
