"""The token cache: made once, never read half, never out of date."""

from __future__ import annotations

import hashlib
import pickle
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from refine_pl.data import Bytes, Corpus, Tokenizer, cache_files
from refine_pl.data.cache_files import default_cache_dir
from refine_pl.data.token_cache import TokenCache, tokenized
from refine_pl.errors import ConfigError, DataError


class Own(Corpus):
    def __init__(self, **documents: str) -> None:
        self.all = documents

    def read(self):
        yield from self.all.items()


class Counting(Tokenizer):
    """One id per character, offset; counts the texts that it was given."""

    def __init__(self, vocab_size: int = 300, offset: int = 0) -> None:
        self.size, self.offset, self.texts = vocab_size, offset, 0

    vocab_size = property(lambda self: self.size)
    eos_token_id = property(lambda self: None)
    fingerprint = property(lambda self: f"counting {self.offset}")

    def encode(self, text):
        self.texts += 1
        return [ord(character) + self.offset for character in text]

    def decode(self, ids):
        return "".join(chr(i - self.offset) for i in ids)


CORPUS = Own(a="hello", empty="", b="world!")


def caches(root: Path) -> list[Path]:
    """The manifests; each has its table, and there is nothing else."""
    files = sorted((root / "tokens").iterdir())
    assert files[::2] == [path.with_suffix(".arrow") for path in files[1::2]]
    return files[1::2]


def test_documents_come_back(tmp_path):
    cache = tokenized(CORPUS, Bytes(), tmp_path)
    assert len(cache) == 3
    assert [cache.name(i) for i in range(3)] == ["a", "empty", "b"]
    assert cache.lengths.tolist() == [5, 0, 6]
    assert [bytes(cache.document(i).tolist()).decode() for i in range(3)] == ["hello", "", "world!"]
    assert bytes(cache.document(2, 2, 4).tolist()) == b"rl"
    assert bytes(cache.document(0, 3, 99).tolist()) == b"lo"  # not into the next document
    assert cache.manifest.tokens == 11
    assert cache.document(0).dtype == np.uint16


def test_datasets_reads_the_table(tmp_path):
    import datasets

    cache = tokenized(CORPUS, Bytes(), tmp_path)
    table = datasets.Dataset.from_file(str(cache.path.with_suffix(".arrow")))
    assert table["name"][:] == ["a", "empty", "b"]
    assert table["tokens"][:] == [cache.document(i).tolist() for i in range(3)]


def test_documents_are_mapped_and_not_copied(tmp_path):
    cache = tokenized(Own(**{f"d{i}": "x" * 2**19 for i in range(5)}), Bytes(), tmp_path)
    assert [int(cache.document(i).sum()) for i in range(5)] == [120 * 2**19] * 5
    assert not cache.document(0).flags.owndata
    assert not cache.document(0).flags.writeable
    path = cache.path.with_suffix(".arrow")
    content = bytearray(path.read_bytes())
    place = content.index(b"x\0x\0x\0x\0")
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"y\0")
    assert cache.document(0)[0] == ord("y")  # what is seen is the file


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_ids_take_the_smallest_type_that_holds_them(tmp_path, size, dtype):
    tokenizer = Counting(vocab_size=size, offset=size - 128)
    cache = tokenized(Own(a="\x7f\0"), tokenizer, tmp_path)
    assert cache.document(0).dtype == dtype
    assert cache.document(0).tolist() == [size - 1, size - 128]


def test_made_once(tmp_path):
    tokenizer = Counting()
    lines: list[str] = []
    for _ in range(3):
        tokenized(CORPUS, tokenizer, tmp_path, lines.append)
    assert tokenizer.texts == 3
    assert len(lines) == 1
    assert lines[0].startswith("Tokenizing Own with Counting into ")


def test_made_again_for_other_content_or_tokenizer(tmp_path):
    tokenizer = Counting()
    tokenized(CORPUS, tokenizer, tmp_path)
    tokenized(Own(a="hello", empty="", b="World!"), tokenizer, tmp_path)
    tokenized(Own(a="hello", empty="", c="world!"), tokenizer, tmp_path)  # names are content
    tokenized(CORPUS, Counting(offset=1), tmp_path)
    tokenized(CORPUS, Counting(vocab_size=301), tmp_path)
    assert len(caches(tmp_path)) == 5


def test_skipped_rows_are_remembered(tmp_path):
    class Skipping(Corpus):
        on_bad_row = "skip"

        def read(self):
            self.bad_row("broken", where="row 0")
            yield "a", "x"

    tokenized(Skipping(), Bytes(), tmp_path)
    manifest = tokenized(Skipping(), Bytes(), tmp_path).manifest
    assert (manifest.skipped_rows, manifest.first_skipped) == (1, "row 0: broken")


def test_nothing_is_left_of_a_build_that_stops(tmp_path):
    class Stops(Counting):
        def encode(self, text):
            if text == "world!":
                raise KeyboardInterrupt
            return super().encode(text)

    with pytest.raises(KeyboardInterrupt):
        tokenized(CORPUS, Stops(), tmp_path)
    assert caches(tmp_path) == []


def test_a_build_that_was_killed_is_not_taken_for_a_cache(tmp_path):
    tokenized(CORPUS, Bytes(), tmp_path)
    (path,) = caches(tmp_path)
    path.rename(path.parent / ".building-abc")  # the table is there, and what stands for it is not
    tokenizer = Counting()
    assert tokenized(CORPUS, tokenizer, tmp_path).lengths.tolist() == [5, 0, 6]
    assert tokenizer.texts == 3


def test_two_processes_that_build_the_same(tmp_path):
    """The other one finishes while this one is building."""
    nested = []

    class Slow(Counting):
        def encode_batch(self, texts):
            if not nested:
                nested.append(None)
                tokenized(CORPUS, Counting(), tmp_path)
            return super().encode_batch(texts)

    cache = tokenized(CORPUS, Slow(), tmp_path)
    assert cache.lengths.tolist() == [5, 0, 6]
    assert len(caches(tmp_path)) == 1


@pytest.mark.parametrize(
    ("suffix", "damage", "reason"),
    [
        (".arrow", lambda c: c[:-40], "ArrowInvalid|OSError"),
        (".arrow", lambda c: c[: len(c) // 2], "ArrowInvalid|0 documents with 0 tokens"),
        (".arrow", lambda c: b"", "ArrowInvalid"),
        (".arrow", lambda c: b"nothing of the kind" * 99, "ArrowInvalid|OSError"),
        (".arrow", None, "FileNotFoundError"),
        (".json", lambda c: b"{}", "carries no digest"),
        (".json", lambda c: b"[" * 100_000, "RecursionError"),
        (".json", lambda c: b"\xff" + c, "UnicodeDecodeError"),
        (".json", lambda c: c[:-3], "JSONDecodeError"),
        (".json", lambda c: c.replace(b'"documents": 3', b'"documents": 4'), "is not what"),
        (".json", lambda c: c.replace(b'"tokens": 11', b'"tokens": 10'), "is not what"),
    ],
)
def test_a_damaged_cache_is_made_again(tmp_path, suffix, damage, reason):
    tokenized(CORPUS, Bytes(), tmp_path)
    (manifest,) = caches(tmp_path)
    path = manifest.with_suffix(suffix)
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    with pytest.raises(ValueError, match=reason):
        TokenCache(manifest)
    lines: list[str] = []
    cache = tokenized(CORPUS, Bytes(), tmp_path, lines.append)
    assert "is damaged" in lines[0]
    assert re.search(reason, lines[0])
    assert lines[0].endswith("it is made again.")
    assert bytes(cache.document(2).tolist()) == b"world!"
    assert caches(tmp_path) == [manifest]


def rebuilt(root, corpus=CORPUS):
    """What is said when the cache is opened; it must be right again."""
    lines: list[str] = []
    cache = tokenized(corpus, Bytes(), root, lines.append)
    assert [bytes(cache.document(i).tolist()) for i in range(3)] == [b"hello", b"", b"world!"]
    assert cache.manifest == tokenized(corpus, Bytes(), root).manifest
    return lines


def table_of(cache, **columns):
    """Write another table in the place of a cache's."""
    import pyarrow as pa

    table = pa.table(columns)
    path = str(cache.path.with_suffix(".arrow"))
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("kind", ["int64", "uint32", "string", "uint16"])
def test_a_table_of_other_numbers_is_made_again(tmp_path, kind):
    """Ids out of range, of another type, or other ones: as many documents and tokens."""
    import pyarrow as pa

    cache = tokenized(CORPUS, Bytes(), tmp_path)
    ids = [[999] * 5, [], [70_000 if kind != "uint16" else 300] * 6]
    if kind == "string":
        ids = [[str(x) for x in row] for row in ids]
    tokens = pa.array(ids, pa.list_(getattr(pa, kind)()))
    table_of(cache, name=pa.array(["a", "empty", "b"]), tokens=tokens)
    lines = rebuilt(tmp_path)
    reason = "bytes of its table are not" if kind.startswith("uint") else "TypeError: a table of"
    assert reason in lines[0]
    assert str(cache.path) in lines[0]


def test_one_bit_at_random_is_found(tmp_path):
    cache = tokenized(CORPUS, Bytes(), tmp_path)
    draw = random.Random(0)
    found = 0
    for path in (cache.path, cache.path.with_suffix(".arrow")):
        whole = path.read_bytes()
        for _ in range(25):
            content = bytearray(whole)
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            lines = rebuilt(tmp_path)
            assert len(lines) == 2
            assert lines[0].startswith(f"The token cache {cache.path} is damaged (")
            found += 1
            assert path.read_bytes() == whole
    assert found == 50


def test_the_cache_of_another_corpus_under_this_name(tmp_path):
    cache = tokenized(CORPUS, Bytes(), tmp_path)
    other = tokenized(Own(a="jello", empty="", b="world!"), Bytes(), tmp_path)
    for suffix in (".json", ".arrow"):
        shutil.copyfile(other.path.with_suffix(suffix), cache.path.with_suffix(suffix))
    assert "it was made from another corpus" in rebuilt(tmp_path)[0]


def test_a_large_table_is_read_once_and_then_known(tmp_path, monkeypatch):
    """A digest is remembered with the version of the file, so a start costs a look at it."""
    monkeypatch.setattr(cache_files, "_MEMO_MIN_BYTES", 0)
    monkeypatch.setattr(cache_files, "_SETTLED_S", -1e9)
    read = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: (read.append(file.name), real(file, kind))[1]
    )
    cache = tokenized(CORPUS, Bytes(), tmp_path)
    read.clear()
    for _ in range(3):
        tokenized(CORPUS, Bytes(), tmp_path)
    assert read == [str(cache.path.with_suffix(".arrow"))]
    memos = list((tmp_path / "hashes").iterdir())
    assert len(memos) == 1
    for damage in (b"", b"\xff" * 64, b"0" * 32, memos[0].read_bytes()[::-1]):
        memos[0].write_bytes(damage)  # a damaged memory is not believed
        assert rebuilt(tmp_path) == []


def test_a_corpus_that_changes_while_it_is_read(tmp_path):
    class Growing(Own):
        readings = 0

        def read(self):
            self.readings += 1
            yield "a", "x" * self.readings

    with pytest.raises(DataError, match="the corpus changed while it was being read"):
        tokenized(Growing(), Bytes(), tmp_path)
    assert caches(tmp_path) == []


def test_ids_beyond_the_vocabulary(tmp_path):
    with pytest.raises(DataError) as caught:
        tokenized(CORPUS, Counting(vocab_size=110), tmp_path)
    message = str(caught.value)
    assert "the tokenizer made ids from 101 to 111" in message
    assert "document a" in message
    assert "0 to 109" in message


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        tokenized(CORPUS, Bytes(), tmp_path / "file")
    assert "REFINE_PL_CACHE" in str(caught.value)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("REFINE_PL_CACHE", raising=False)
    assert default_cache_dir() == Path.home() / ".cache" / "refine-pl"
    monkeypatch.setenv("REFINE_PL_CACHE", str(tmp_path))
    tokenized(CORPUS, Bytes())
    assert len(caches(tmp_path)) == 1


def test_workers_receive_the_path_and_not_the_tokens(tmp_path):
    cache = tokenized(Own(a="x" * 100_000), Bytes(), tmp_path)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).document(0, 0, 2).tolist() == [120, 120]
