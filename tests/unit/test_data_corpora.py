"""Corpora: what they yield, and what they say about files that cannot be used."""

from __future__ import annotations

import json
import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refine_pl.data import Corpus, Files, HubDataset, StandardLibrary
from refine_pl.data.cache_files import _remembered, file_hash
from refine_pl.errors import DataError


def jsonl(path: Path, *rows: object) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def parquet(path: Path, row_group_size: int = 2, **columns) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def message_of(corpus: Corpus) -> str:
    with pytest.raises(DataError) as caught:
        list(corpus.documents())
    return str(caught.value)


def assert_says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in:\n{message}"


# --- the standard library ---


def test_standard_library():
    documents = dict(StandardLibrary(min_bytes=100_000).documents())
    assert list(documents) == sorted(documents)
    root = Path(sysconfig.get_path("stdlib"))
    assert "typing.py" in documents
    assert documents["typing.py"].encode() == (root / "typing.py").read_bytes()
    assert all(len(text.encode()) >= 100_000 for text in documents.values())


def test_standard_library_leaves_out_what_differs_between_installations(tmp_path, monkeypatch):
    files = {
        "b.py": b"b",
        "a.py": b"a",
        "site-packages/x.py": b"x",
        "pkg/test/t.py": b"t",
        "_sysconfigdata__linux.py": b"s",
        "latin.py": b"# -*- coding: latin-1 -*-\n\xe9",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    corpus = StandardLibrary()
    assert list(corpus.documents()) == [("a.py", "a"), ("b.py", "b")]
    assert corpus.skipped_rows == 1
    assert corpus.first_skipped == "latin.py: not UTF-8 at byte 26"


def test_no_standard_library(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert_says(message_of(StandardLibrary()), "no standard library in source form", str(tmp_path))


# --- files that can be read ---


def test_text_files_keep_their_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes("ä\r\nb".encode())
    name = str(tmp_path / "a.txt")
    assert list(Files(name).documents()) == [(name, "ä\r\nb")]


def test_jsonl(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", {"text": "one"}, "", {"text": "two", "id": 2})
    assert list(Files(name).documents()) == [(f"{name}:1", "one"), (f"{name}:3", "two")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet(tmp_path, kind):
    body = pa.array(["one", "two", "three"], type=kind)
    name = parquet(tmp_path / "a.parquet", body=body, n=[1, 2, 3])
    documents = list(Files(name, text_column="body").documents())
    assert documents == [(f"{name}:0", "one"), (f"{name}:1", "two"), (f"{name}:2", "three")]


def test_parquet_dictionary_column(tmp_path):
    name = parquet(tmp_path / "a.parquet", text=pa.array(["x", "y", "x"]).dictionary_encode())
    assert [text for _, text in Files(name).documents()] == ["x", "y", "x"]


def test_patterns_are_sorted_and_files_are_read_once(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    assert Files("*.txt").files() == ["a.txt", "b.txt"]
    assert Files("**/*.txt").files() == ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert Files(["b.txt", "*.txt", "./sub/../a.txt"]).files() == ["b.txt", "a.txt"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert Files(str(tmp_path / "a[1].txt")).files() == [str(tmp_path / "a[1].txt")]


# --- files that cannot be read ---


def test_bad_json_names_file_and_line(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", {"text": "one"}, '{"text": "two"')
    assert_says(
        message_of(Files(name)),
        "not valid JSON: Expecting ',' delimiter at character",
        f"{name}, line 2",
        "one JSON object per line",
        "on_bad_row: skip",
    )


def test_json_that_is_not_an_object(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", ["text"])
    assert_says(message_of(Files(name)), "a JSON list, not an object", f"{name}, line 1")


def test_missing_column_lists_the_columns_and_the_nearest(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"texts": "y", "id": 1})
    assert_says(
        message_of(Files(name)), "no column 'text'", "line 2", "texts, id", "text_column: texts"
    )
    name = parquet(tmp_path / "a.parquet", content=["x"], contents_hash=["y"])
    assert_says(
        message_of(Files(name, text_column="contents")),
        "no column 'contents'",
        f"where:   {name}",
        "content, contents_hash",
        "text_column: content",
    )


@pytest.mark.parametrize(
    ("value", "found"), [(None, "null"), (7, "int (7)"), (["x"], "list (['x'])")]
)
def test_text_that_is_not_text(tmp_path, value, found):
    name = jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"text": value})
    assert_says(message_of(Files(name)), f"column 'text' holds {found}", f"{name}, line 2")


def test_null_in_parquet_names_the_row(tmp_path):
    name = parquet(tmp_path / "a.parquet", text=["a", "b", "c", None])
    assert_says(message_of(Files(name)), "column 'text' holds null", f"{name}, row 3")


def test_column_of_numbers(tmp_path):
    name = parquet(tmp_path / "a.parquet", text=[1, 2])
    assert_says(message_of(Files(name)), "column 'text' holds int (1)", f"{name}, row 0", "text")


def test_half_a_surrogate_pair(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", r'{"text": "ab\ud800"}')
    assert_says(message_of(Files(name)), "half a surrogate pair at character 2", "line 1")


def test_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    assert_says(message_of(Files(str(tmp_path / "a.txt"))), "not UTF-8 at byte 3", "a.txt")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n\xff\n')
    assert_says(message_of(Files(str(tmp_path / "a.jsonl"))), "not UTF-8 at byte 0", "line 2")


def test_damaged_parquet(tmp_path):
    name = tmp_path / "a.parquet"
    name.write_bytes(b"PAR1 nothing")
    assert_says(message_of(Files(str(name))), "not a readable parquet file", str(name))


def test_parquet_damaged_in_the_middle(tmp_path):
    name = Path(parquet(tmp_path / "a.parquet", text=["some text " * 50, "other text " * 50]))
    content = bytearray(name.read_bytes())
    content[4:200] = b"\xff" * 196
    name.write_bytes(content)
    assert_says(message_of(Files(str(name))), "not a readable parquet file", str(name))


def test_missing_file(tmp_path):
    (tmp_path / "corpus.txt").write_text("x")
    message = message_of(Files(str(tmp_path / "corpsu.txt")))
    assert_says(message, "file not found", f"did you mean {tmp_path / 'corpus.txt'}?")


def test_pattern_without_match(tmp_path):
    message = message_of(Files(str(tmp_path / "*.txt")))
    assert_says(message, "no file matches", f"patterns start from {os.getcwd()}")


def test_folder_and_unknown_suffix(tmp_path):
    assert_says(message_of(Files(str(tmp_path))), "a folder was given", f"{tmp_path}/**/*.txt")
    (tmp_path / "a.csv").write_text("x")
    message = message_of(Files(str(tmp_path / "a.csv")))
    assert_says(message, "'.csv' cannot be read", "a.csv", ".txt, .jsonl, .parquet")
    assert_says(message_of(Files([])), "paths is empty")


def test_empty_corpus(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", "")
    assert_says(message_of(Files(name)), "holds no document", "at least one document")


# --- skipping ---


def test_skipped_rows_are_counted(tmp_path):
    rows = [{"text": "a"}, "{", {"text": None}, {"txt": "b"}, [1], r'{"text": "\ud800"}']
    lines = jsonl(tmp_path / "a.jsonl", *rows, {"text": "c"})
    table = parquet(tmp_path / "b.parquet", text=[None, "d"])
    corpus = Files([lines, table], on_bad_row="skip")
    for _ in range(2):  # counts are of one reading
        assert [text for _, text in corpus.documents()] == ["a", "c", "d"]
        assert corpus.skipped_rows == 6
        assert corpus.first_skipped is not None
        assert corpus.first_skipped.startswith(f"{lines}, line 2: not valid JSON")


def test_all_rows_skipped(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", {"text": None}, {"text": 1})
    message = message_of(Files(name, on_bad_row="skip"))
    assert_says(message, "all 2 rows were skipped", f"{name}, line 1: column 'text' holds null")


# --- content hashes ---


def test_content_hash_follows_content_and_settings(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", {"text": "a", "other": "b"})
    before = Files(name).content_hash()
    assert Files(name).content_hash() == before
    assert Files(name, text_column="other").content_hash() != before
    assert Files(name, on_bad_row="skip").content_hash() != before
    jsonl(tmp_path / "a.jsonl", {"text": "A", "other": "b"})
    assert Files(name).content_hash() != before


def test_content_hash_of_any_corpus_tells_names_from_text():
    class Own(Corpus):
        def __init__(self, *documents):
            self.all = documents

        def read(self):
            yield from self.all

    assert Own(("ab", "c")).content_hash() != Own(("a", "bc")).content_hash()
    assert Own(("a", "b")).content_hash() == Own(("a", "b")).content_hash()


def test_hash_of_an_unchanged_large_file_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("refine_pl.data.cache_files._MEMO_MIN_BYTES", 1)
    path, memo = tmp_path / "a.txt", tmp_path / "memo"
    path.write_text("one")
    first = file_hash(path, memo)
    assert not memo.exists(), "a file that changed just now must not be remembered"
    monkeypatch.setattr("refine_pl.data.cache_files._SETTLED_S", -1.0)
    assert file_hash(path, memo) == first
    (kept,) = memo.iterdir()
    forged = "0" * 32
    kept.write_text(_remembered(kept.name, forged))
    assert file_hash(path, memo) == forged  # it is read back
    kept.write_text(forged)
    assert file_hash(path, memo) == first  # and not if another wrote it
    kept.write_text(_remembered(kept.name, forged))
    kept.write_text("0")
    assert file_hash(path, memo) == first  # and not if it was cut off
    times = path.stat()
    path.write_text("two")  # same size; and the time of change is put back
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_hash(path, memo) not in (first, "0" * 32)


# --- the datasets library ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]}),
        test=datasets.Dataset.from_dict({"text": ["c", None], "n": [1, 2]}),
    )
    both.save_to_disk(folder / "both")
    both["train"].save_to_disk(folder / "one")
    (folder / "lines").mkdir()
    jsonl(folder / "lines" / "train.jsonl", {"text": "x"}, {"text": "y"})
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def test_hub_dataset_from_disk(saved):
    both = HubDataset(str(saved / "both"))
    assert list(both.documents()) == [(f"{both.name}/train:0", "a"), (f"{both.name}/train:1", "b")]
    assert [text for _, text in HubDataset(str(saved / "one")).documents()] == ["a", "b"]
    assert both.content_hash() == HubDataset(both.name).content_hash()


def test_hub_dataset_from_a_folder_of_files(saved):
    folder = str(saved / "lines")
    assert [text for _, text in HubDataset(folder).documents()] == ["x", "y"]
    only = HubDataset(folder, data_files="train.jsonl")
    assert [text for _, text in only.documents()] == ["x", "y"]


def test_hub_dataset_errors(saved):
    both = str(saved / "both")
    assert_says(message_of(HubDataset(both, split="tets")), "no split 'tets'", "split: test")
    assert_says(
        message_of(HubDataset(both, text_column="txt")),
        "no column 'txt'",
        "text, n",
        "text_column: text",
    )
    assert_says(
        message_of(HubDataset(both, split="test")), "column 'text' holds null", "split test, row 1"
    )
    skipping = HubDataset(both, split="test", on_bad_row="skip")
    assert [text for _, text in skipping.documents()] == ["c"]
    assert skipping.skipped_rows == 1
    message = message_of(HubDataset(str(saved / "lines"), split="validation"))
    assert_says(message, "cannot be loaded", "Unknown split", "split 'validation'")
    message = message_of(HubDataset("nobody/nothing-here"))
    assert_says(message, "the dataset 'nobody/nothing-here' cannot be loaded", "without a network")
