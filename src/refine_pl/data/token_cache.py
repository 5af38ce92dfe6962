"""Documents as token ids on disk: tokenized once, then memory-mapped by every run and every worker.

Two files (see :mod:`refine_pl.data.cache_files`), named by the content of the corpus, the tokenizer
and the format:

    KEY.arrow   an Arrow table, as ``datasets.Dataset.from_file`` opens it, one row per document:
                ``name``, and ``tokens`` as uint16, or uint32 for large vocabularies
    KEY.json    what it was made from, how much it must hold, and the digests of the table and of
                itself; written last, so it stands for both
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from refine_pl.checksums import sealed, unsealed
from refine_pl.data.cache_files import cached_file, default_cache_dir, digest_of, file_hash
from refine_pl.data.corpora import Corpus
from refine_pl.errors import DataError
from refine_pl.tokenizers import TokenIds, Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 3  # raised when the same corpus and tokenizer give other files
_CHARACTERS_AT_ONCE = 2**20  # tokenized together
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a cache was made from, and what it must contain."""

    corpus_hash: str
    tokenizer: str
    documents: int
    tokens: int
    skipped_rows: int
    first_skipped: str | None
    table: str  # digest of the .arrow file


def read_manifest(path: Path) -> Manifest:
    """What a ``.json`` file of a cache says.

    Raises:
        ValueError: it is damaged, or another file.
    """
    try:
        return Manifest(**unsealed(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{kind}{error}") from error


class TokenCache:
    """A complete cache, open for reading.

    Args:
        path: the ``.json`` file that :func:`tokenized` wrote.

    Raises:
        ValueError: the cache is damaged.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.path = path
        self.manifest = read_manifest(path)
        try:
            # What `datasets` does for a file, without the second that it takes to import it.
            with pa.memory_map(str(path.with_suffix(".arrow"))) as file:
                table = pa.ipc.open_stream(file).read_all()
            if table.schema not in [_schema(kind()) for kind in (pa.uint16, pa.uint32)]:
                raise TypeError(f"a table of {', '.join(map(str, table.schema.types))}")
            self._names, self._tokens = table["name"], table["tokens"]
            self.lengths: npt.NDArray[np.int64] = (
                pc.list_value_length(self._tokens).to_numpy().astype(np.int64)
            )
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as e:
            raise ValueError(f"{type(e).__name__}: {e}") from e
        found, made = (len(self), int(self.lengths.sum())), self.manifest
        if found != (made.documents, made.tokens):
            raise ValueError(
                f"{found[0]} documents with {found[1]} tokens, where {made.documents} with "
                f"{made.tokens} belong"
            )

    def __len__(self) -> int:
        return len(self._tokens)

    def check_bytes(self, memo_dir: Path | None = None) -> None:
        """Compare the digest of the table with the one that was written.

        Args:
            memo_dir: where digests are remembered: a table that did not change since it was read
                is not read again. ``None`` reads it.

        Raises:
            ValueError: it is another one.
        """
        if file_hash(self.path.with_suffix(".arrow"), memo_dir) != self.manifest.table:
            raise ValueError("the bytes of its table are not those that were written")

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path]]:
        # A worker that is spawned opens the files itself instead of receiving all tokens.
        return TokenCache, (self.path,)

    def name(self, index: int) -> str:
        """The name of a document."""
        return str(self._names[index].as_py())

    def document(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens ``start`` to ``stop - 1`` of a document, not copied."""
        tokens: np.ndarray = self._tokens[index].values.to_numpy()
        return tokens[start:stop]


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
        cache_dir: where caches are; :func:`default_cache_dir` if ``None``.
        notify: receives a line when tokens are about to be made.

    Raises:
        DataError: the corpus cannot be read, or changed while it was.
        ConfigError: the folder for caches cannot be written.
    """
    root = Path(cache_dir or default_cache_dir()).expanduser()
    corpus_hash = corpus.content_hash(root / "hashes")
    key = digest_of(FORMAT, corpus_hash, tokenizer.fingerprint, tokenizer.vocab_size)
    path = root / "tokens" / f"{key}.json"
    made_from = (corpus_hash, tokenizer.fingerprint)
    if path.is_file():
        try:
            cache = TokenCache(path)
            cache.check_bytes(root / "hashes")
            if (cache.manifest.corpus_hash, cache.manifest.tokenizer) != made_from:
                raise ValueError("it was made from another corpus, or by another tokenizer")
            return cache
        except ValueError as error:
            notify(f"The token cache {path} is damaged ({error}): it is made again.")
    notify(f"Tokenizing {corpus.label} with {tokenizer.label} into {path.parent}, once.")
    with cached_file(path) as manifest:
        with cached_file(path.with_suffix(".arrow")) as table:
            documents, tokens = _write(table, corpus, tokenizer)
            skipped = (corpus.skipped_rows, corpus.first_skipped)
            digest = file_hash(table)
            if corpus.content_hash(root / "hashes") != corpus_hash:
                raise DataError(
                    "the corpus changed while it was being read",
                    where=corpus.label,
                    way_out="start again when it is complete",
                )
        made = Manifest(*made_from, documents, tokens, *skipped, digest)
        manifest.write_text(json.dumps(sealed(asdict(made)), indent=2))
    return TokenCache(path)


def in_groups(items: Iterable[T], text: Callable[[T], str]) -> Iterator[list[T]]:
    """Items in groups of about a million characters, for tokenizers that work in parallel."""
    group: list[T] = []
    characters = 0
    for item in items:
        group.append(item)
        characters += len(text(item))
        if characters >= _CHARACTERS_AT_ONCE:
            yield group
            group, characters = [], 0
    if group:
        yield group


def check_ids(ids: TokenIds, tokenizer: Tokenizer, where: str) -> None:
    """Raise a DataError where the tokenizer's own ``vocab_size`` rules ids out."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise DataError(
            f"the tokenizer made ids from {ids.min()} to {ids.max()}",
            where=f"{tokenizer.label}, {where}",
            allowed=f"0 to {tokenizer.vocab_size - 1}, by its own vocab_size",
        )


def _schema(kind: pa.DataType) -> pa.Schema:
    """The columns of a table with ids of ``kind``."""
    import pyarrow as pa

    return pa.schema({"name": pa.string(), "tokens": pa.list_(kind)})


def _write(path: Path, corpus: Corpus, tokenizer: Tokenizer) -> tuple[int, int]:
    """Write the table; the numbers of its documents and tokens."""
    import pyarrow as pa

    kind = pa.uint16() if tokenizer.vocab_size <= 2**16 else pa.uint32()
    schema = _schema(kind)
    documents = tokens = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for group in in_groups(corpus.documents(), lambda document: document[1]):
            encoded = tokenizer.encode_batch([text for _, text in group])
            for (name, _), ids in zip(group, encoded, strict=True):
                check_ids(ids, tokenizer, f"document {name}")
            lists = [ids.astype(kind.to_pandas_dtype()) for ids in encoded]
            columns = [pa.array([name for name, _ in group]), pa.array(lists, pa.list_(kind))]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            documents += len(group)
            tokens += sum(map(len, encoded))
    return documents, tokens
