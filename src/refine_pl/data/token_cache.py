"""Documents as token ids on disk: tokenized once, then memory-mapped by every run and every worker.

A cache is a folder named by what it was made from (content of the corpus, tokenizer, format), so it
can never be out of date. It is written under another name and renamed when it is complete, so it
can never be read half.

    manifest.json   what it was made from, and the counts that the other files must agree with
    tokens.bin      all ids, one document after the other: uint16, or uint32 for large vocabularies
    offsets.npy     int64 [documents + 1], where each document starts
    names.json      the documents' names
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refine_pl.data.corpora.base import Corpus
from refine_pl.errors import ConfigError, DataError
from refine_pl.tokenizers import Tokenizer

FORMAT = 1
_CHARACTERS_AT_ONCE = 2**20  # tokenized together
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a cache was made from, and what it must contain."""

    format: int
    corpus_hash: str
    tokenizer: str
    vocab_size: int
    dtype: str
    documents: int
    tokens: int
    skipped_rows: int
    first_skipped: str | None


class TokenCache:
    """A complete cache, open for reading.

    Args:
        folder: a folder that :func:`tokenized` wrote.

    Raises:
        ValueError: the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest = Manifest(**_load_json(folder / "manifest.json"))
            self.names: list[str] = _load_json(folder / "names.json")
            self.offsets: npt.NDArray[np.int64] = np.load(folder / "offsets.npy")
            size = (folder / "tokens.bin").stat().st_size
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        self._check(size)
        self.tokens: npt.NDArray[np.unsignedinteger] = (
            np.memmap(folder / "tokens.bin", dtype=self.manifest.dtype, mode="r")
            if size
            else np.empty(0, dtype=self.manifest.dtype)  # an empty file cannot be mapped
        )

    def _check(self, size: int) -> None:
        m = self.manifest
        if m.format != FORMAT or m.dtype not in ("uint16", "uint32"):
            raise ValueError(f"format {m.format} with {m.dtype}")
        if size != m.tokens * np.dtype(m.dtype).itemsize:
            raise ValueError(f"tokens.bin has {size} bytes for {m.tokens} tokens of {m.dtype}")
        if len(self.names) != m.documents or self.offsets.shape != (m.documents + 1,):
            raise ValueError(f"names.json or offsets.npy does not hold {m.documents} documents")
        if self.offsets[0] != 0 or self.offsets[-1] != m.tokens or (self.lengths < 0).any():
            raise ValueError("offsets.npy does not divide tokens.bin")

    def __len__(self) -> int:
        return self.manifest.documents

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path]]:
        # A worker that is spawned opens the files itself instead of receiving all tokens.
        return TokenCache, (self.folder,)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """``[documents]``: tokens of each document."""
        return np.diff(self.offsets)

    def num_tokens(self, index: int) -> int:
        """Tokens of one document."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def document(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens ``start`` to ``stop - 1`` of a document, not copied."""
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.tokens[begin + start : end if stop is None else min(begin + stop, end)]


def default_cache_dir() -> Path:
    """``$REFINE_PL_CACHE``, or ``~/.cache/refine-pl``."""
    return Path(os.environ.get("REFINE_PL_CACHE") or "~/.cache/refine-pl").expanduser()


def tokenized(
    corpus: Corpus,
    tokenizer: Tokenizer,
    cache_dir: Path | None = None,
    notify: Callable[[str], None] = _log.info,
) -> TokenCache:
    """Open the cache of ``corpus`` under ``tokenizer``; build it first if there is none.

    Args:
        corpus: the documents.
        tokenizer: makes the ids.
        cache_dir: where caches live; :func:`default_cache_dir` if ``None``.
        notify: receives a line when tokens are about to be made, or made again.

    Raises:
        DataError: the corpus cannot be read, or changed while it was.
        ConfigError: the folder for caches cannot be written.
    """
    root = Path(cache_dir or default_cache_dir()).expanduser()
    corpus_hash = corpus.content_hash(root / "hashes")
    made_from = (FORMAT, corpus_hash, tokenizer.fingerprint, tokenizer.vocab_size)
    key = hashlib.blake2b(repr(made_from).encode(), digest_size=16).hexdigest()
    folder = root / "tokens" / key
    if folder.is_dir():
        try:
            return TokenCache(folder)
        except ValueError as error:
            notify(f"The token cache {folder} is damaged ({error}): it is made again.")
            _discard(folder)
    notify(f"Tokenizing {corpus.label} with {tokenizer.label} into {folder}, once.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(
            f"the folder for token caches cannot be written: {error.strerror}",
            where=str(folder.parent),
            way_out="set data.cache_dir, or the environment variable REFINE_PL_CACHE",
        ) from error
    try:
        _write(building, corpus, corpus_hash, tokenizer)
        if corpus.content_hash(root / "hashes") != corpus_hash:
            raise DataError(
                "the corpus changed while it was being read",
                where=corpus.label,
                way_out="start again when it is complete",
            )
        _publish(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return TokenCache(folder)


def _write(folder: Path, corpus: Corpus, corpus_hash: str, tokenizer: Tokenizer) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    names: list[str] = []
    offsets = [0]
    with (folder / "tokens.bin").open("wb") as file:
        for group in _groups(corpus):
            texts = [text for _, text in group]
            for (name, _), ids in zip(group, tokenizer.encode_batch(texts), strict=True):
                if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
                    raise DataError(
                        f"the tokenizer made ids from {ids.min()} to {ids.max()}",
                        where=f"{tokenizer.label}, document {name}",
                        allowed=f"0 to {tokenizer.vocab_size - 1}, by its own vocab_size",
                    )
                file.write(ids.astype(dtype).tobytes())
                names.append(name)
                offsets.append(offsets[-1] + len(ids))
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    (folder / "names.json").write_text(json.dumps(names))
    manifest = Manifest(
        format=FORMAT,
        corpus_hash=corpus_hash,
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype.name,
        documents=len(names),
        tokens=offsets[-1],
        skipped_rows=corpus.skipped_rows,
        first_skipped=corpus.first_skipped,
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2))


def _groups(corpus: Corpus) -> Iterator[list[tuple[str, str]]]:
    """Documents in groups of about a million characters."""
    group: list[tuple[str, str]] = []
    characters = 0
    for name, text in corpus.documents():
        group.append((name, text))
        characters += len(text)
        if characters >= _CHARACTERS_AT_ONCE:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _publish(building: Path, folder: Path) -> None:
    """Give a complete cache its name. Whoever comes first wins; the others hold the same tokens."""
    building.chmod(0o755)  # mkdtemp makes folders private; a shared cache is read by others
    try:
        building.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _discard(folder: Path) -> None:
    """Take a damaged cache away in one step, so that nobody opens it while it is deleted."""
    aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
    try:
        folder.rename(aside / folder.name)
    except FileNotFoundError:
        pass  # another process was faster
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text())
