"""`refine-pl prepare`: RULER's rows from files of SQuAD and HotpotQA."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from published_questions import hotpotqa, squad

from refine_pl.commands.prepare import main
from refine_pl.data import Bytes, RowFiles, TaskData
from refine_pl.data.tasks.published_questions import HOTPOTQA, SQUAD
from refine_pl.errors import ConfigError, DataError


@pytest.fixture
def prepare(tmp_path, capsys):
    """Rows of both data sets, as the recipe's comment says; the text that was printed."""

    def run(out="train", *more: str, validation: str | None = "validation") -> str:
        words = ["ruler_qa", "--tokenizer", "bytes", "--length", "700"]
        words += ["--squad", str(squad(tmp_path / "train-v2.0.json"))]
        words += ["--hotpotqa", str(hotpotqa(tmp_path / "hotpot_train_v1.1.json"))]
        words += ["--out", str(tmp_path / out), "--rows", "24", "--validation_rows", "4"]
        if validation:
            words += ["--validation_out", str(tmp_path / validation)]
        assert main([*words, *more]) == 0
        return capsys.readouterr().out

    return run


def read(folder: Path):
    return RowFiles(str(folder / "*.parquet"), answers_column="answer").rows(Bytes())


def test_rows_that_the_recipes_read(prepare, tmp_path):
    said = prepare()
    rows, held_out = read(tmp_path / "train"), read(tmp_path / "validation")
    assert (len(rows), len(held_out)) == (24, 4)
    assert [row.task for row in held_out] == ["ruler_hotpotqa"] * 2 + ["ruler_squadqa"] * 2
    for row in rows + held_out:
        assert len(Bytes().encode(row.prompt)) <= 700 - 32
        assert len(Bytes().encode(row.prompt)) > 700 - 32 - 120  # no further document fits
        assert (row.max_gen_tokens, row.length) == (32, 700)
        assert row.prompt.endswith("Answer:")
        if row.task == "ruler_squadqa":
            assert any(answer in row.prompt for answer in row.answers)
            assert len(row.answers) == 1  # given twice in the file
        else:
            number = re.search(r"Which one is (\d+)\?", row.prompt)[1]
            assert all(f"Title {number}.{p}\n" in row.prompt for p in range(3))
    assert said.count("rows of 700 tokens") == 4
    data = TaskData(
        Bytes(),
        training={"ruler": RowFiles(str(tmp_path / "train/*.parquet"))},
        validation={"ruler": RowFiles(str(tmp_path / "validation/*.parquet"))},
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup("fit")
    assert len(next(iter(data.train_dataloader()))) == 8


def test_held_out_questions_and_their_paragraphs_are_not_trained_on(prepare, tmp_path):
    prepare()
    trained = "".join(row.prompt for row in read(tmp_path / "train"))
    for row in read(tmp_path / "validation"):
        question = re.search(r"Question: (.*)\nAnswer:", row.prompt)[1]
        assert question not in trained
        if row.task == "ruler_squadqa":
            a, p = re.search(r"(\d+)\.(\d)\?", question).groups()
            answered_by = f" {10 * int(a) + int(p)}."
            (own,) = {text for text in row.prompt.split("\n") if text.endswith(answered_by)}
            assert own not in trained


def test_the_seed_decides(prepare, tmp_path):
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        prepare(out, "--seed", seed, validation=f"{out}_validation")
    for side in ("", "_validation"):
        a, b, c = (read(tmp_path / f"{out}{side}") for out in "abc")
        assert a == b
        assert [row.prompt for row in a] != [row.prompt for row in c]


def test_rows_are_not_replaced_unasked(prepare, tmp_path):
    prepare()
    before = (tmp_path / "train/ruler_squadqa.parquet").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        prepare("train", "--length", "600")
    assert (tmp_path / "train/ruler_squadqa.parquet").read_bytes() == before
    with pytest.raises(DataError, match="no question fits 300 tokens"):  # of HotpotQA
        prepare("train", "--length", "300", "--overwrite")
    assert (tmp_path / "train/ruler_squadqa.parquet").read_bytes() == before
    prepare("train", "--length", "600", "--overwrite")
    assert {row.length for row in read(tmp_path / "train")} == {600}


@pytest.mark.parametrize("published", [SQUAD, HOTPOTQA])
def test_a_file_that_is_not_there(published, tmp_path):
    with pytest.raises(DataError) as caught:
        published.questions(tmp_path / "none.json")
    assert f"the files of {published.name} are at http" in str(caught.value)


WRONG = [
    (SQUAD, "[]", "data is missing, not a list"),
    (SQUAD, '{"data": {}}', "data is a dict, not a list"),
    (SQUAD, '{"data": [{"paragraphs": [3]}]}', "data[0].paragraphs[0].context is missing"),
    (
        SQUAD,
        '{"data": [{"paragraphs": [{"context": "a", "qas": [{"answers": [{"text": 1}]}]}]}]}',
        "data[0].paragraphs[0].qas[0].answers[0].text is a int, not a str",
    ),
    (SQUAD, '{"data": []}', "no question has an answer"),
    (SQUAD, '{"data": ', "not a file of SQuAD: Expecting value"),
    (HOTPOTQA, '{"data": []}', "it holds a dict, not a list"),
    (HOTPOTQA, "[1]", "[0].context is missing, not a list"),
    (HOTPOTQA, '[{"context": [["t", "s"]]}]', "[0].context[0][1] is a str, not a list"),
    (HOTPOTQA, '[{"context": [["t", [null]]]}]', "[0].context[0][1][0] is missing, not a str"),
    (HOTPOTQA, "[]", "no question has an answer"),
]


@pytest.mark.parametrize(("published", "content", "what"), WRONG)
def test_other_files(published, content, what, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        published.questions(path)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)


def walk(value):
    """Every mapping and list of a JSON value."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from walk(inner)


@pytest.mark.parametrize("published", [SQUAD, HOTPOTQA])
def test_files_with_a_value_of_another_kind(published, tmp_path):
    """Whatever is replaced by something else: an error with the place, or other questions."""
    make = squad if published is SQUAD else hotpotqa
    whole = json.loads(make(tmp_path / "file.json", 2).read_text())
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        content = json.loads(json.dumps(whole))
        holders = [value for value in walk(content) if value]
        holder = rng.choice(holders)
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key] = rng.choice([None, 3, "text", [], {}, ["text"], True, 1.5])
        (tmp_path / "file.json").write_text(json.dumps(content))
        try:
            published.questions(tmp_path / "file.json")
        except DataError:
            refused += 1
    assert refused > 60


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["ruler_qa", "--tokenizer", "bytes", "--out", "x"], "no file is given"),
        (["ruler", "--tokenizer", "bytes", "--out", "x"], "invalid choice: 'ruler'"),
        (["ruler_qa", "--squad", "f", "--tokenizer", "bytes"], "required: --out"),
        (["ruler_qa", "--squad", "f", "--out", "x"], "required: --tokenizer"),
        (
            ["ruler_qa", "--squad", "f", "--tokenizer", "bytes", "--out", "x", "--rows", "0"],
            "--rows is 0",
        ),
        (
            [
                *("ruler_qa", "--squad", "f", "--tokenizer", "bytes"),
                *("--out", "x", "--validation_out", "./x"),
            ],
            "--validation_out is --out",
        ),
        (
            [*["ruler_qa", "--squad", "f", "--tokenizer", "bytes", "--out", "x", "--length", "-1"]],
            "--length is -1",
        ),
    ],
)
def test_options(words, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        main(words)
    assert what in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_its_rows_says_which_key_and_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = TaskData(
        Bytes(),
        training={"ruler": RowFiles("data/ruler_train/*.parquet")},
        cache_dir=str(tmp_path),
    )
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    message = str(caught.value)
    assert "no file matches 'data/ruler_train/*.parquet'" in message
    assert "training.ruler.init_args.paths of the data" in message
    assert "refine-pl prepare ruler_qa" in message
