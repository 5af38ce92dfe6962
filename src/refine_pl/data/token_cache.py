"""Documents as token ids on disk: tokenized once, then memory-mapped by every run and every worker.

Two files (see :mod:`refine_pl.data.cache_files`), named by the content of the corpus, the tokenizer
and the format:

    KEY.arrow   an Arrow table, as ``datasets.Dataset.from_file`` opens it, one row per document:
                ``name``, and ``tokens`` as uint16, or uint32 for large vocabularies
    KEY.json    what it was made from and how much it must hold; written last, so it stands for both
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from refine_pl.data.cache_files import default_cache_dir, digest_of, whole_file
from refine_pl.data.corpora import Corpus
from refine_pl.errors import DataError
from refine_pl.tokenizers import TokenIds, Tokenizer

FORMAT = 2  # raised when the same corpus and tokenizer give other files
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
        try:
            self.manifest = Manifest(**json.loads(path.read_text()))
            # What `datasets` does for a file, without the second that it takes to import it.
            with pa.memory_map(str(path.with_suffix(".arrow"))) as file:
                table = pa.ipc.open_stream(file).read_all()
            self._names, self._tokens = table["name"], table["tokens"]
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        self.lengths: npt.NDArray[np.int64] = (
            pc.list_value_length(self._tokens).to_numpy().astype(np.int64)
        )
        found, made = (len(self), int(self.lengths.sum())), self.manifest
        if found != (made.documents, made.tokens):
            raise ValueError(
                f"{found[0]} documents with {found[1]} tokens, where {made.documents} with "
                f"{made.tokens} belong"
            )

    def __len__(self) -> int:
        return len(self._tokens)

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
    if path.is_file():
        try:
            return TokenCache(path)
        except ValueError as error:
            notify(f"The token cache {path} is damaged ({error}): it is made again.")
    notify(f"Tokenizing {corpus.label} with {tokenizer.label} into {path.parent}, once.")
    with whole_file(path) as manifest:
        with whole_file(path.with_suffix(".arrow")) as table:
            documents, tokens = _write(table, corpus, tokenizer)
            skipped = (corpus.skipped_rows, corpus.first_skipped)
            if corpus.content_hash(root / "hashes") != corpus_hash:
                raise DataError(
                    "the corpus changed while it was being read",
                    where=corpus.label,
                    way_out="start again when it is complete",
                )
        made = Manifest(corpus_hash, tokenizer.fingerprint, documents, tokens, *skipped)
        manifest.write_text(json.dumps(asdict(made), indent=2))
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


def _write(path: Path, corpus: Corpus, tokenizer: Tokenizer) -> tuple[int, int]:
    """Write the table; the numbers of its documents and tokens."""
    import pyarrow as pa

    kind = pa.uint16() if tokenizer.vocab_size <= 2**16 else pa.uint32()
    schema = pa.schema({"name": pa.string(), "tokens": pa.list_(kind)})
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
