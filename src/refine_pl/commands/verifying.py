"""``refine-pl doctor --verify``: whether files are what was written, by the digests beside them.

An exported folder has ``checksums.json``; a token cache has digests in its manifests, generated
rows in their first line, and a remembered digest in itself; a checkpoint is a zip archive, whose
every record has a CRC-32.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from refine_pl.checksums import CHECKSUMS, read_checksums, sha256_of
from refine_pl.errors import ConfigError

State = Literal["ok", "damaged", "missing", "not listed"]


@dataclass(frozen=True, slots=True)
class Verified:
    """One file."""

    file: str  # from the folder on
    state: State
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """All files of a folder."""

    folder: str
    kind: str
    files: list[Verified]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged or missing. A file that is not listed was added, no more."""
        return all(file.state in ("ok", "not listed") for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "is_sound": self.is_sound}

    def render(self) -> str:
        """A line for each file, and the sum."""
        width = max(len(file.file) for file in self.files)
        text = f"{self.folder}: {self.kind}\n"
        for file in self.files:
            text += f"  {file.state:<10}  {file.file:<{width}}  {file.why}".rstrip() + "\n"
        states = [file.state for file in self.files]
        counts = (f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states)))
        return text + f"{'sound' if self.is_sound else 'not sound'}: {', '.join(counts)}\n"


def verify(path: str) -> Verification:
    """Read every file of a folder that has a digest, and compare.

    Args:
        path: an exported folder, a cache folder, or a folder with checkpoints of runs.

    Raises:
        ConfigError: it is none of them.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{path} is not a folder", where="--verify", allowed=_ALLOWED)
    kinds: dict[str, Callable[[Path], Iterator[Verified]]] = {
        "an exported folder": _exported,
        "a cache": _cache,
        "checkpoints": _checkpoints,
    }
    for kind, read in kinds.items():
        files = list(read(folder))
        if files:
            return Verification(path, kind, files)
    raise ConfigError(
        f"nothing in {path} carries a checksum",
        where="--verify",
        allowed=_ALLOWED,
        way_out="`refine-pl export` writes one; a folder from elsewhere has none to compare with",
    )


_ALLOWED = f"a folder with {CHECKSUMS}, a cache (tokens, rows), or a folder with .ckpt files"


def _exported(folder: Path) -> Iterator[Verified]:
    if not (folder / CHECKSUMS).exists():
        return
    try:
        listed = read_checksums(folder)
    except (ValueError, OSError) as error:
        yield Verified(CHECKSUMS, "damaged", str(error))
        return
    yield Verified(CHECKSUMS, "ok")
    for name, digest in listed.items():
        if not (folder / name).is_file():
            yield Verified(name, "missing")
        elif (found := sha256_of(folder / name)) != digest:
            yield Verified(name, "damaged", f"sha256 {found[:12]}, not {digest[:12]}")
        else:
            yield Verified(name, "ok")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (CHECKSUMS, *listed):
            yield Verified(path.name, "not listed")


def _cache(folder: Path) -> Iterator[Verified]:
    from refine_pl.data.cache_files import is_sound_memo
    from refine_pl.data.tasks.generated import read_rows

    root = folder.parent if folder.name in ("tokens", "rows", "hashes") else folder
    for path in sorted(path for name in _CACHES for path in (root / name).glob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_relative_to(folder):
            continue
        if path.suffix == ".json" and path.parent.name == "tokens":
            yield from _token_cache(path, name)
        elif path.suffix == ".jsonl" and path.parent.name == "rows":
            yield _checked(name, partial(read_rows, path))
        elif path.parent.name == "hashes" and not path.name.startswith("."):
            why = "" if is_sound_memo(path) else "not what was written: it is not used"
            yield Verified(name, "damaged" if why else "ok", why)
        elif path.suffix != ".arrow" or not path.with_suffix(".json").exists():
            yield Verified(name, "not listed", "left by a run that was stopped, or foreign")


_CACHES = ("tokens", "rows", "hashes")


def _token_cache(path: Path, name: str) -> Iterator[Verified]:
    """A manifest and its table; which of them is damaged is not always known."""
    from refine_pl.data.token_cache import TokenCache, read_manifest

    table = Path(name).with_suffix(".arrow").as_posix()
    manifest = _checked(name, lambda: read_manifest(path))
    yield manifest
    if not path.with_suffix(".arrow").exists():
        yield Verified(table, "missing")
    elif manifest.state == "ok":
        yield _checked(table, lambda: TokenCache(path).check_bytes())


def _checkpoints(folder: Path) -> Iterator[Verified]:
    for path in sorted(folder.rglob("*.ckpt")):
        if path.is_file():
            yield _checked(path.relative_to(folder).as_posix(), partial(_test_zip, path))


def _test_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise ValueError(f"{error}, of {path.stat().st_size:,} bytes") from error
    if bad is not None:
        raise ValueError(f"the CRC-32 of {bad} is another one")


def _checked(name: str, read: Callable[[], object]) -> Verified:
    try:
        read()
    except ValueError as error:
        return Verified(name, "damaged", str(error).splitlines()[0][:200])
    return Verified(name, "ok")
