"""``predict --prompts -``: prompts from standard input, nothing but answers on standard output."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run

from refine_pl.data import RowFiles
from refine_pl.errors import DataError
from refine_pl.tokenizers import Bytes

START = Path(__file__).parents[2] / "configs" / "starts" / "tiny"
MODEL = [
    *("--model.pretrained", str(START)),
    *("--data.init_args.tokenizer", "refine_pl.data.Bytes", "--data.init_args.budget", "4"),
]
PROMPTS = ["once upon a time", "def add(a, b):", "é"]
AS_TEXT = "\n\n".join(PROMPTS) + "\n"
AS_JSON = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)


@pytest.fixture
def predict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(given, *options, prompts="-"):
        given = given if isinstance(given, bytes) else given.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        return run("predict", "--prompts", prompts, *MODEL, *options)

    return call


def lines(text):
    """Every line, each of which has to be JSON."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("given", [AS_TEXT, AS_JSON, "\ufeff" + AS_JSON, AS_TEXT.rstrip("\n")])
def test_answers_are_those_of_a_file(predict, tmp_path, given):
    outcome = predict(given, "--out", "piped")
    assert outcome.code == 0, outcome.stderr
    found = lines(outcome.stdout)
    assert found == lines(Path("piped/predictions.jsonl").read_text())
    assert "run folder   piped" in outcome.stderr
    Path("prompts.txt").write_text(AS_TEXT)
    assert predict("", "--out", "filed", prompts="prompts.txt").code == 0
    expected = lines(Path("filed/predictions.jsonl").read_text())
    assert [line["output"] for line in found] == [line["output"] for line in expected]
    assert len(found) == len(PROMPTS)


def test_a_run_that_goes_on_prints_every_line_once(predict):
    first = predict(AS_TEXT, "--out", "run").stdout
    folder = Path("run/predictions.jsonl")
    folder.write_text("".join(folder.read_text().splitlines(keepends=True)[:2]))
    assert predict(AS_TEXT, "--out", "run").stdout == first
    assert "not the evaluation that" in predict(AS_TEXT + "more\n", "--out", "run").stderr


REFUSED = {
    "nothing": (b"", [], "standard input is empty"),
    "blank lines": (b"\n \n", [], "standard input is empty"),
    "parquet": (b"PAR1\x00\x01", [], "standard input is a parquet file"),
    "not text": (b"a\n\xff\n", [], "standard input, line 2"),
    "broken JSON": (b'{"prompt": "a"}\n{"prompt": b}\n', [], "standard input, line 2"),
    "no column": (b'{"question": "a"}\n', [], "no column 'prompt'"),
    "text after JSON": (b'{"prompt": "a"}\nb\n', [], "not valid JSON"),
    "two processes": (
        b"a\n",
        ["--trainer.devices", "2", "--trainer.accelerator", "cpu"],
        "2 processes would share it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(predict, name):
    given, options, says = REFUSED[name]
    outcome = predict(given, "--out", "refused", *options)
    assert outcome.code == 2
    assert says in " ".join(outcome.stderr.split())
    assert outcome.stdout == ""
    assert not Path("refused").exists()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (RowFiles("-"), "standard input holds prompts without answers"),
        (RowFiles(["-", "a.txt"], require_answers=False), "stands among files"),
    ],
)
def test_rows_that_need_more(monkeypatch, rows, says):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"why\n")))
    with pytest.raises(DataError, match=says):
        rows.rows(Bytes())


def test_a_reader_that_leaves_ends_it_quietly(tmp_path):
    """As `| head -1` does."""
    words = ["predict", "--prompts", "-", *MODEL, "--data.init_args.test_batch_size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "refine_pl", *words],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"a\n" * 40)
    process.stdin.close()
    first = process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 141
    assert json.loads(first)["id"] == "prompts/stdin/1"
    assert "Traceback" not in errors
    assert "error" not in errors
