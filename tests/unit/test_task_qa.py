"""Questions about many documents: their own paragraphs are whole, and others fill the tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tokenizers import byte_level

from refine_pl.data import Bytes, MultiDocumentQA
from refine_pl.errors import ConfigError, DataError


def question(number: int, **changes) -> dict:
    row = {
        "question": f"What is number {number}?",
        "answers": [f"answer {number}", str(number)],
        "paragraphs": [
            {"title": f"Title {number}", "text": f"Paragraph {number} says answer {number}. " * 2},
            f"Paragraph {number} without a title.",
        ],
    }
    return row | changes


@pytest.fixture
def make(tmp_path):
    def build(rows=None, lengths=(1024,), **settings) -> MultiDocumentQA:
        path = tmp_path / "dev.jsonl"
        rows = [question(i) for i in range(12)] if rows is None else rows
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = MultiDocumentQA(str(path), list(lengths), **settings)
        source.cache_dir = tmp_path / "cache"
        return source

    return build


def documents_of(prompt: str) -> list[str]:
    found = re.findall(r"Document (\d+):\n(.*?)\n\n(?=Document|Use the)", prompt, re.DOTALL)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [text for _, text in found]


def test_the_layout(make):
    (row,) = make([question(3)]).rows(Bytes())
    title = "Title 3\nParagraph 3 says answer 3. Paragraph 3 says answer 3."
    plain = "Paragraph 3 without a title."
    documents = documents_of(row.prompt)
    assert sorted(documents) == sorted([title, plain])
    instruction = (
        "Use the passages to answer the question. Reply with the answer alone and add nothing to "
        "it."
    )
    assert row.prompt == (
        f"{instruction}\n\nThese are the passages.\nDocument 1:\n{documents[0]}\n\n"
        f"Document 2:\n{documents[1]}\n\n{instruction}\n\nQuestion: What is number 3?\nAnswer:"
    )
    assert (row.task, row.answers) == ("ruler_squadqa", ("answer 3", "3"))
    assert (row.id, row.length, row.max_gen_tokens) == ("ruler_squadqa/1024/dev/1-0", 1024, 32)


@pytest.mark.parametrize("length", [500, 700, 1024, 1500])
@pytest.mark.parametrize("name", ["bytes", "byte_level"])
def test_other_paragraphs_fill_the_tokens(make, tmp_path, length, name):
    tokenizer = Bytes() if name == "bytes" else byte_level(tmp_path / "tokenizer")
    rows = make(lengths=[length], max_gen_tokens=20).rows(tokenizer)
    assert len(rows) == 12
    places = set()
    for number, row in enumerate(rows):
        used = len(tokenizer.encode(row.prompt)) + 20
        documents = documents_of(row.prompt)
        assert len(set(documents)) == len(documents)
        assert used <= length
        assert used > length - 100 or len(documents) == 24  # of the longest paragraph
        own = f"Title {number}\n" + f"Paragraph {number} says answer {number}. " * 2
        assert own.strip() in documents
        assert f"Paragraph {number} without a title." in documents
        places.add(documents.index(own.strip()))
    assert len(places) > 1


def test_rows_do_not_change(make):
    rows = make(lengths=[600, 900]).rows(Bytes())
    assert make(lengths=[900], seed=0).rows(Bytes()) == rows[12:]
    other = make(lengths=[900], seed=1).rows(Bytes())
    assert [row.answers for row in other] == [row.answers for row in rows[12:]]
    assert not {row.prompt for row in other} & {row.prompt for row in rows}
    assert not {row.id for row in other} & {row.id for row in rows}


def test_the_cache(make, tmp_path):
    said: list[str] = []
    for _ in range(2):
        source = make([question(0), question(1, paragraphs=["x" * 900])], [700])
        source.notify = said.append
        source.rows(Bytes())
        assert any("1 questions left out" in note for note in source.notes)
    assert len(said) == 1
    changed = make([question(0), question(2)], [700])
    changed.notify = said.append
    changed.rows(Bytes())
    assert len(said) == 2


def test_questions_that_are_too_long(make):
    rows = [question(0), question(1, paragraphs=["x" * 900]), question(2)]
    source = make(rows, [700, 2000])
    assert [row.answers[1] for row in source.rows(Bytes())] == ["0", "2", "0", "1", "2"]
    assert source.notes[0] == (
        "ruler_squadqa at 700 tokens: 1 questions left out, their own paragraphs do not fit"
    )
    with pytest.raises(DataError) as caught:
        make(rows, [700], on_long_row="error").rows(Bytes())
    assert "and with max_gen_tokens 32 more than 700" in str(caught.value)
    assert "dev/2: 'What is number 1?'" in str(caught.value)
    with pytest.raises(DataError, match="no question fits 100 tokens"):
        make(rows, [100]).rows(Bytes())


def test_a_number_of_rows(make):
    source = make(num_rows=5)
    assert len(source.rows(Bytes())) == 5
    assert not any("instead of" in note for note in source.notes)
    source = make(num_rows=20, lengths=[1024])
    assert len(source.rows(Bytes())) == 12
    assert any("12 rows instead of 20" in note for note in source.notes)


def test_too_few_paragraphs_are_said(make):
    source = make(lengths=[9000])
    assert all(len(documents_of(row.prompt)) == 24 for row in source.rows(Bytes()))
    assert source.notes == [
        "ruler_squadqa at 9,000 tokens: 12 rows hold all 24 paragraphs that there are, and could "
        "hold more"
    ]


def test_parquet_and_names_of_columns(tmp_path):
    rows = [question(i) for i in range(3)]
    table = pa.table(
        {
            "q": [row["question"] for row in rows],
            "answer": [row["answers"][0] for row in rows],
            "context": [[{"title": "T", "text": f"text {i}"}] for i in range(3)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = MultiDocumentQA(
        str(tmp_path / "*.parquet"),
        [600],
        task="ruler_hotpotqa",
        question_column="q",
        paragraphs_column="context",
        template="{documents}\nQ: {question}",
    )
    source.cache_dir = tmp_path / "cache"
    made = source.rows(Bytes())
    assert [row.task for row in made] == ["ruler_hotpotqa"] * 3
    assert made[2].answers == ("answer 2",)
    assert made[2].prompt.endswith("\nQ: What is number 2?")
    assert sorted(re.findall(r"T\ntext \d", made[2].prompt)) == [f"T\ntext {i}" for i in range(3)]


def test_a_question_with_braces(make):
    row = question(0, question="What is {documents}?", paragraphs=["{question}"])
    (made,) = make([row]).rows(Bytes())
    assert "Document 1:\n{question}\n\n" in made.prompt
    assert made.prompt.endswith("Question: What is {documents}?\nAnswer:")


BAD = {
    "no paragraphs": (question(1, paragraphs=[]), "column 'paragraphs' holds no paragraph"),
    "null": (question(1, paragraphs=None), "column 'paragraphs' holds null"),
    "an empty one": (question(1, paragraphs=["x", " "]), "no paragraph, or an empty one"),
    "no text": (question(1, paragraphs=[{"title": "x"}]), "column 'paragraphs' holds null"),
    "numbers": (question(1, paragraphs=[1]), "column 'paragraphs' holds int"),
    "no answers": (question(1, answers=[]), "the row has no answers"),
    "no question": (question(1, question=""), "column 'question' is empty"),
    "no column": ({"question": "x", "answers": ["y"], "paragraph": ["z"]}, "no column 'paragr"),
}


@pytest.mark.parametrize(("row", "what"), BAD.values(), ids=BAD)
def test_bad_rows(make, tmp_path, row, what):
    rows = [question(0), row, question(2)]
    with pytest.raises(DataError) as caught:
        make(rows).rows(Bytes())
    assert what in str(caught.value)
    assert f"{tmp_path / 'dev.jsonl'}, line 2" in str(caught.value)
    source = make(rows, on_bad_row="skip")
    assert len(source.rows(Bytes())) == 2
    assert "skipped rows: 1; the first was" in source.notes[0]


def test_no_row_is_left(make):
    with pytest.raises(DataError, match="holds no question: all 1 rows were skipped"):
        make([question(0, answers=[])], on_bad_row="skip").rows(Bytes())
    with pytest.raises(DataError, match="paragraphs_column: paragraph"):
        make([BAD["no column"][0]]).rows(Bytes())


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"lengths": []}, "lengths is"),
        ({"lengths": [32]}, "more than max_gen_tokens"),
        ({"lengths": [64, 64]}, "different"),
        ({"template": "{documents} only"}, "the template has {question} 0 times"),
        ({"template": "{documents}{documents}{question}"}, "{documents} 2 times"),
    ],
)
def test_settings_that_are_refused(make, settings, what):
    with pytest.raises(ConfigError, match=re.escape(what)):
        make(**settings)


def test_paths_are_files_of_rows(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    source = MultiDocumentQA(str(tmp_path / "a.txt"), [600])
    source.cache_dir = Path(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        source.rows(Bytes())
