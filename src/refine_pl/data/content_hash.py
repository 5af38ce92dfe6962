"""Digests of files, remembered for large files as long as the file system says they are unchanged.

A digest is remembered under everything the file system knows about a version of a file: path, size,
times of the last change of content and of metadata (which a program cannot set), and inode. A file
that changed moments ago is not remembered, because a second change could fall on the same tick.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path

_MEMO_MIN_BYTES = 4 * 2**20  # smaller files are hashed faster than it is worth remembering
_SETTLED_S = 5.0


def file_hash(path: Path, memo_dir: Path | None = None) -> str:
    """The blake2b digest of a file's bytes, 32 hexadecimal digits.

    Args:
        path: the file.
        memo_dir: folder where digests of large files are remembered; ``None`` remembers nothing.
    """
    stat = path.stat()
    memo = None
    if memo_dir is not None and stat.st_size >= _MEMO_MIN_BYTES:
        memo = memo_dir / _version_of(path, stat)
        if memo.is_file() and len(known := memo.read_text()) == 32:
            return known
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    settled = time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_S
    if memo is not None and settled and _version_of(path, path.stat()) == memo.name:
        _write_whole(memo, digest)
    return digest


def _version_of(path: Path, stat: os.stat_result) -> str:
    version = (
        str(path.resolve()),
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ctime_ns,
        stat.st_ino,
        stat.st_dev,
    )
    return hashlib.blake2b(repr(version).encode(), digest_size=16).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader sees the whole text or no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
