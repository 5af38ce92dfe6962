"""A sharded checkpoint is data: what torch would unpickle from it is looked through first.

Torch reads ``.metadata`` and every item that is not a tensor with pickle, which runs what it is
told to. Here the first is read with the few classes that torch writes into it, the others with
``weights_only``; both before torch reads them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch.distributed.checkpoint import filesystem, metadata

from refine_pl.errors import CheckpointError

METADATA = ".metadata"

_CLASSES = (
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.TensorProperties,
    metadata.TensorStorageMetadata,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    torch.Size,
)
_DTYPES = {str(v) for v in vars(torch).values() if isinstance(v, torch.dtype)}  # torch.float32
_NAMES = (
    {f"{cls.__module__}.{cls.__qualname__}" for cls in _CLASSES}
    | _DTYPES
    | {"torch.serialization._get_layout"}
    | {
        f"{home}.{kind}"
        for home in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath")
    }
)


class _Refused(Exception):
    """The name of something that torch does not write."""


_set_state: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]


class _Reader(pickle._Unpickler):  # the one in C has no dispatch
    """Reads what torch writes, and refuses everything else by name."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle names, if it is one of the known names."""
        if f"{module}.{name}" not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return super().find_class(module, name)

    def set_state(self) -> None:
        """Set the state of an object; that of a class would change it for the whole process."""
        if isinstance(self.stack[-2], type):
            raise _Refused(f"a change of {self.stack[-2].__qualname__}")
        _set_state(self)

    dispatch[pickle.BUILD[0]] = set_state


def check_shards(folder: Path) -> None:
    """Refuse a sharded checkpoint that would have torch run something, or read other files.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: naming the file and what is in it.
    """
    files = sorted(folder.glob(f"*{METADATA}"))
    if not files:
        raise _unusable(folder, f"it has no {METADATA}")
    for file in files:
        try:
            with file.open("rb") as stream:
                found = _Reader(stream).load()
        except _Refused as refused:
            raise _unusable(file, f"it names {refused}", code=True) from None
        except Exception as error:  # a damaged pickle can raise anything
            raise _unusable(file, f"{type(error).__name__}: {error}") from error
        if not isinstance(found, metadata.Metadata):
            raise _unusable(file, f"it holds a {type(found).__name__}")
        _check_items(folder, file, found)


def _check_items(folder: Path, file: Path, found: metadata.Metadata) -> None:
    """Check the places of all items, and what is in those that are not tensors."""
    kinds, places = found.state_dict_metadata, found.storage_data
    if not isinstance(kinds, Mapping) or not isinstance(places, Mapping):
        raise _unusable(file, "it lacks the places of the items")
    for index, place in places.items():
        if not isinstance(index, metadata.MetadataIndex) or not isinstance(
            place, filesystem._StorageInfo
        ):
            raise _unusable(file, f"{index!r} is not the place of an item")
        name = str(place.relative_path)
        if Path(name).name != name or (folder / name).is_symlink():
            raise _unusable(file, f"{index.fqn} is in {name}, outside of the checkpoint")
        if isinstance(kinds.get(index.fqn), metadata.TensorStorageMetadata):
            continue  # torch reads tensors with weights_only
        if getattr(place, "transform_descriptors", None):
            raise _unusable(file, f"{index.fqn} is packed")
        try:
            with (folder / name).open("rb") as stream:
                torch.load(_slice(stream, place), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            said = f"{index.fqn} holds more than plain values: {_global(error)}"
            raise _unusable(folder / name, said, code=True) from error
        except Exception as error:  # zip and pickle have no common class
            raise _unusable(folder / name, f"{index.fqn}: {error}") from error


def _slice(stream: IO[bytes], place: Any) -> io.BytesIO:
    stream.seek(place.offset)
    return io.BytesIO(stream.read(place.length))


def _global(error: Exception) -> str:
    text = str(error)
    return text.partition("GLOBAL ")[2].split(" ")[0] or text.splitlines()[0][:200]


def _unusable(file: Path, what: str, code: bool = False) -> CheckpointError:
    said = (what.splitlines() or [what])[0][:300]
    return CheckpointError(
        f"{file} cannot be used: {said}",
        where="--ckpt_path",
        allowed="tensors, plain values and torch's own metadata; no code of a checkpoint is run"
        if code
        else "the folder that sharded training writes",
        way_out=None if code else "another checkpoint of the run, if this one is incomplete",
    )
