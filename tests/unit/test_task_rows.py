"""Rows of tasks from files, what is refused, and how prompts and answers become ids."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded_rows import encode_row
from small_tokenizers import byte_level, sentence_piece

from refine_pl.data import Bytes, RowFiles
from refine_pl.data.tasks.encoding import Encoding, encode_rows
from refine_pl.errors import ConfigError, DataError
from refine_pl.task_records import TaskRow


def jsonl(path: Path, *rows: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def parquet(path: Path, **columns) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return str(path)


def good(**changes) -> dict:
    row = {"prompt": "Who?", "answers": ["me", "I"], "task": "qasper"}
    return {key: value for key, value in (row | changes).items() if value is not ...}


def rows_of(paths, **settings) -> list[TaskRow]:
    return RowFiles(paths, **settings).rows(Bytes())


# --- rows that can be used ---


def test_jsonl(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        good(),
        "",
        good(answers="one", max_gen_tokens=7, max_seq_length=4096, other=[1]),
    )
    assert rows_of(path) == [
        TaskRow("qasper/a/1", "qasper", "Who?", ("me", "I"), 32, None),
        TaskRow("qasper/4096/a/3", "qasper", "Who?", ("one",), 7, 4096),
    ]


def test_parquet_as_the_published_rows_are(tmp_path):
    path = parquet(
        tmp_path / "r.parquet",
        index=[5, 9, 2],
        prompt=["p", "q", "r"],
        answer=[["a"], ["b", "c"], ["d"]],
        max_seq_length=[4096] * 3,
        task=["ruler_squadqa"] * 3,
    )
    rows = rows_of(path, max_gen_tokens=20)
    assert [row.id for row in rows] == [f"ruler_squadqa/4096/r/{i}" for i in range(3)]
    assert rows[1] == TaskRow("ruler_squadqa/4096/r/1", "ruler_squadqa", "q", ("b", "c"), 20, 4096)
    assert [row.id for row in rows_of(path, id_column="index")] == ["5", "9", "2"]
    assert rows_of(path, length=8192, task="mine")[0][:2] == ("mine/8192/r/0", "mine")


def test_columns_by_name(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"q": "Who?", "gold": ["me"], "key": "x1", "kind": "trec", "most": 3, "answers": ["no"]},
    )
    assert rows_of(
        path,
        prompt_column="q",
        answers_column="gold",
        id_column="key",
        task_column="kind",
        budget_column="most",
    ) == [TaskRow("x1", "trec", "Who?", ("me",), 3, None)]


def test_prompts_without_answers(tmp_path):
    (tmp_path / "p.txt").write_text("first\n\n second \r\n")
    rows = rows_of(str(tmp_path / "p.txt"), require_answers=False)
    assert [(row.id, row.prompt, row.answers) for row in rows] == [
        ("prompts/p/1", "first", ()),
        ("prompts/p/3", " second ", ()),
    ]
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "x"}, {"prompt": "y", "answers": []})
    assert [row.answers for row in rows_of(path, require_answers=False)] == [(), ()]
    with pytest.raises(DataError, match=r"require_answers: false"):
        rows_of(str(tmp_path / "p.txt"))


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a", "b"):
        jsonl(tmp_path / folder / "dev.jsonl", good())
    jsonl(tmp_path / "b" / "test.jsonl", good())
    ids = [row.id for row in rows_of(str(tmp_path / "*" / "*.jsonl"))]
    assert ids == ["qasper/a/dev/1", "qasper/b/dev/1", "qasper/test/1"]
    parquet(tmp_path / "b" / "test.parquet", prompt=["p", "q"], answers=["a", "b"], task=["t"] * 2)
    ids = [row.id for row in rows_of(str(tmp_path / "b" / "test.*"), task="t")]
    assert len(set(ids)) == len(ids) == 3


@pytest.mark.parametrize("answer", ["1999-01-01", "1999-01-01T10:00:00", "7"])
def test_texts_stay_as_they_stand(tmp_path, answer):
    """The JSON reader of ``datasets`` makes points in time of dates, and rounds long numbers."""
    number = 12345678901234567890123
    path = jsonl(tmp_path / "a.jsonl", good(answers=[answer], key=number, max_gen_tokens=3))
    (row,) = rows_of(path, id_column="key")
    assert (row.id, row.answers, row.max_gen_tokens) == (str(number), (answer,), 3)


# --- rows that cannot ---

BAD = {
    "no answers": (good(answers=[]), "the row has no answers: column 'answers' holds []"),
    "null answers": (good(answers=None), "the row has no answers: column 'answers' holds None"),
    "an empty answer": (good(answers=["x", " "]), "column 'answers' holds an empty answer"),
    "a number": (good(answers=[3]), "column 'answers' holds int (3)"),
    "null among answers": (good(answers=["x", None]), "column 'answers' holds null"),
    "an empty prompt": (good(prompt=" \n"), "column 'prompt' is empty"),
    "prompt no text": (good(prompt=["x"]), "column 'prompt' holds list (['x'])"),
    "half a pair": (good(prompt="\ud800"), "column 'prompt' holds half a surrogate pair"),
    "no budget": (good(max_gen_tokens=0), "column 'max_gen_tokens' holds 0"),
    "budget no number": (good(max_gen_tokens="9"), "column 'max_gen_tokens' holds '9'"),
    "budget true": (good(max_gen_tokens=True), "column 'max_gen_tokens' holds True"),
    "length no number": (good(max_seq_length=-1), "column 'max_seq_length' holds -1"),
    "no prompt": (good(prompt=..., promt="x"), "no column 'prompt'"),
    "no task": (good(task=...), "no column 'task'"),
    "a list": ([1], "a JSON list, not an object"),
    "no JSON": ("{", "not valid JSON"),
}


@pytest.mark.parametrize(("row", "what"), BAD.values(), ids=BAD)
def test_bad_rows(tmp_path, row, what):
    path = jsonl(tmp_path / "a.jsonl", good(), row, good())
    with pytest.raises(DataError) as caught:
        rows_of(path)
    message = str(caught.value)
    assert what in message
    assert f"{path}, line 2" in message
    source = RowFiles(path, on_bad_row="skip")
    assert [row.id for row in source.rows(Bytes())] == ["qasper/a/1", "qasper/a/3"]
    (note,) = source.notes
    assert note.startswith("skipped rows: 1; the first was")
    assert f"line 2: {what}" in note


def test_a_missing_column_is_named_with_those_that_exist(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", good(prompt=..., promt="x"))
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert "one of the columns that exist: answers, task, promt" in str(caught.value)
    assert "prompt_column: promt" in str(caught.value)

    path = parquet(tmp_path / "a.parquet", prompt=["x"], answer_text=["y"], task=["t"])
    for on_bad_row in ("error", "skip"):  # there is no row to skip to
        with pytest.raises(DataError) as caught:
            rows_of(path, on_bad_row=on_bad_row)
        message = str(caught.value)
        assert "no column 'answers'" in message
        assert "prompt, answer_text, task" in message
        assert "way out: answers_column: answer_text" in message
        assert ", row" not in message
    for column in ("answers_column", "id_column"):
        with pytest.raises(DataError, match=f"{column}: answer_text"):
            rows_of(path, **({"answers_column": "answer_text"} | {column: "answertext"}))
    with pytest.raises(DataError, match="task: NAME"):
        rows_of(path, answers_column="answer_text", task_column="kind")


def test_two_rows_of_one_id(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", good(key=1), good(key="1"))
    with pytest.raises(DataError) as caught:
        rows_of(path, id_column="key", on_bad_row="skip")
    message = str(caught.value)
    assert "two rows have the id '1'" in message
    assert f"{path}, line 1, and {path}, line 2" in message


def test_no_row_at_all(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", good(answers=[]))
    with pytest.raises(DataError, match=r"holds no row: all 1 rows were skipped"):
        rows_of(path, on_bad_row="skip")
    with pytest.raises(DataError, match=r"holds no row\n"):
        rows_of(jsonl(tmp_path / "b.jsonl", ""))
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(str(jsonl(tmp_path / "c.csv", "")))
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable parquet file"):
        rows_of(str(tmp_path / "d.parquet"))


# --- ids ---


def row(prompt: str, *answers: str, task: str = "qasper") -> TaskRow:
    return TaskRow("r", task, prompt, answers, 8)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": Bytes(),
        "byte_level": byte_level(folder / "byte_level"),
        "sentence_piece": sentence_piece(folder / "sentence_piece"),
    }


PROMPTS = {
    "a colon": ("Question: What is it?\nAnswer:", "the river", " the river"),
    "a space": ("Question: What is it?\nAnswer: ", "the river", "the river"),
    "a line end": ("a b c\n", "the cat", "the cat"),
    "answer with a space": ("the sea", " near", " near"),
    "digits": ("number 1234567", "7654321", " 7654321"),
}


@pytest.mark.parametrize("name", ["bytes", "byte_level", "sentence_piece"])
@pytest.mark.parametrize(("prompt", "answer", "continuation"), PROMPTS.values(), ids=PROMPTS)
def test_the_answer_continues_the_prompt(tokenizers, name, prompt, answer, continuation):
    tokenizer = tokenizers[name]
    encoded = encode_row(tokenizer, row(prompt, answer, "never this"), Encoding())
    whole = tokenizer.encode(prompt + continuation)
    start = encoded.answer_start
    assert encoded.answered.tolist() == [*whole, tokenizer.eos_token_id]
    assert encoded.prompt.tolist() == tokenizer.encode(prompt)
    assert encoded.cut_tokens == 0
    # The context is all that the prompt keeps, and not a token more.
    own = encoded.prompt.tolist()
    assert own[:start] == whole[:start]
    assert start == len(own) or own[start] != whole[start]
    assert 1 <= start < len(whole)


def test_some_tokenizer_merges_over_the_border(tokenizers):
    """Otherwise the test above would say little."""
    encoded = encode_row(tokenizers["byte_level"], row("What is it? ", "the river"), Encoding())
    assert encoded.answer_start == len(encoded.prompt) - 1


def test_separator_and_end_of_text():
    def text(**settings) -> str:
        encoded = encode_row(Bytes(), row("ab", "c"), Encoding(**settings))
        return Bytes().decode(encoded.answered.tolist())

    assert text() == "ab c<eos>"
    assert text(answer_separator="") == "abc<eos>"
    assert text(answer_separator="\n\n", answer_eos=False) == "ab\n\nc"
    bare = encode_row(Bytes(), row("ab", "c"), Encoding(), with_answer=False)
    assert (bare.answered, bare.answer_start) == (None, None)
    assert encode_row(Bytes(), row("ab"), Encoding()).answered is None


def test_all_needles_are_the_answer():
    encoded = encode_row(Bytes(), row("k =", "1", "2", task="niah_multi_value"), Encoding())
    assert Bytes().decode(encoded.answered.tolist()) == "k = 1, 2<eos>"


def test_no_end_of_text(tmp_path):
    tokenizer = byte_level(tmp_path, eos=None)
    with pytest.raises(ConfigError, match="answer_eos: false"):
        encode_row(tokenizer, row("a", "b"), Encoding())
    encode_row(tokenizer, row("a", "b"), Encoding(answer_eos=False))
    encode_row(tokenizer, row("a", "b"), Encoding(), with_answer=False)


@pytest.mark.parametrize(("limit", "kept"), [(8, "abcdghij"), (5, "abcij"), (1, "a"), (10, None)])
def test_the_middle_is_cut(limit, kept):
    encoded = encode_row(Bytes(), row("abcdefghij", "x"), Encoding(max_prompt_tokens=limit))
    kept = kept or "abcdefghij"
    assert Bytes().decode(encoded.prompt.tolist()) == kept
    assert encoded.cut_tokens == 10 - len(kept)
    assert Bytes().decode(encoded.answered.tolist()) == f"{kept} x<eos>"
    assert encoded.answer_start == len(kept)


def test_a_cut_prompt_loses_the_token_that_the_answer_merges_with(tokenizers):
    tokenizer = tokenizers["byte_level"]
    prompt = "The river is near the sea. What is it? "
    uncut = encode_row(tokenizer, row(prompt, "the river"), Encoding())
    cut = encode_row(tokenizer, row(prompt, "the river"), Encoding(max_prompt_tokens=6))
    target = uncut.answered[uncut.answer_start :].tolist()
    ids = tokenizer.encode(prompt)
    assert cut.prompt.tolist() == ids[:3] + ids[-3:]
    assert cut.answered.tolist() == ids[:3] + ids[-3:-1] + target
    assert cut.answer_start == 5


def test_long_prompts_can_be_refused():
    encoding = Encoding(max_prompt_tokens=4, over_long="refuse")
    encode_row(Bytes(), row("abcd", "x"), encoding)
    with pytest.raises(DataError) as caught:
        encode_row(Bytes(), row("abcde", "x"), encoding)
    message = str(caught.value)
    assert "the prompt has 5 tokens, more than max_prompt_tokens 4" in message
    assert "row r" in message


def test_an_answer_that_adds_nothing():
    with pytest.raises(DataError, match="the answer adds no token"):
        encode_row(Bytes(), row("ab", ""), Encoding(answer_separator=""))


def test_many_rows_are_encoded_as_one_by_one(tokenizers):
    rows = [row("the cat " * (i + 1), "the roof") for i in range(5)] + [row("no answer")]
    together = list(encode_rows(tokenizers["sentence_piece"], rows, Encoding()))
    for encoded, each in zip(together, rows, strict=True):
        alone = encode_row(tokenizers["sentence_piece"], each, Encoding())
        assert encoded.prompt.tolist() == alone.prompt.tolist()
        assert encoded.answer_start == alone.answer_start
        assert (encoded.answered is None) == (alone.answered is None) == (not each.answers)
