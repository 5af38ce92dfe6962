"""Digests beside files, so that a folder can be verified long after it was written.

A mapping is *sealed* with a digest of itself: JSON that was edited is found as any other file is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from refine_pl.errors import UserError

CHECKSUMS = "checksums.json"
_SEAL = "check"


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping, of plain values, with a digest of itself as its last key."""
    return {**values, _SEAL: _digest(values)}


def unsealed(values: Any) -> dict[str, Any]:
    """What was sealed.

    Raises:
        ValueError: it is not that.
    """
    if not isinstance(values, dict) or values.get(_SEAL) is None:
        raise ValueError("its content carries no digest")
    rest = {key: value for key, value in values.items() if key != _SEAL}
    if values[_SEAL] != _digest(rest):
        raise ValueError("its content is not what was written")
    return rest


def write_checksums(folder: Path, names: Iterable[str]) -> Path:
    """Write the SHA-256 of files of a folder into it; the file that holds them."""
    file = folder / CHECKSUMS
    found = {name: sha256_of(folder / name) for name in sorted({*names} - {CHECKSUMS})}
    file.write_text(json.dumps(sealed({"sha256": found}), indent=2) + "\n", encoding="utf-8")
    return file


def read_checksums(folder: Path) -> dict[str, str]:
    """The digests that :func:`write_checksums` wrote, by name.

    Raises:
        ValueError: the file was edited, or is another one.
        OSError: it cannot be read.
    """
    try:
        found = unsealed(json.loads((folder / CHECKSUMS).read_text(encoding="utf-8")))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    digests = found.get("sha256")
    if not isinstance(digests, dict) or any(".." in Path(name).parts for name in digests):
        raise ValueError("it holds no digests of files of its folder")
    return digests


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
