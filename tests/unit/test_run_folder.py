"""Records of a run folder: what is written is read again, and what does not fit is named."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from refine_pl.errors import DataError
from refine_pl.training import run_folder
from refine_pl.training.record_files import (
    append_records,
    drop_later_lines,
    read_record,
    read_records,
    write_json,
)
from refine_pl.training.run_folder import (
    Answer,
    EntropyMap,
    Position,
    Rollout,
    Scores,
    Summary,
    SweepBase,
    SweepEntry,
    SweepIndex,
    SweepTest,
    Validation,
    folder_of,
    stages_of,
)

POSITION = Position(
    3, "a", 9, "before", "after", [Rollout("x\u2028y\udc80", 1.0, {"m": 0.5}, -1.0)]
)
ENTROPY = EntropyMap(1, "a", [0.5, 1.0], [1.0, 0.5], [1], [0], [])


@pytest.mark.parametrize("record", [POSITION, ENTROPY], ids=["rollouts", "entropy"])
def test_lines_come_back(tmp_path, record):
    file = tmp_path / "new" / "lines.jsonl"
    append_records(file, [record, replace(record, iteration=7)])
    append_records(file, [record])
    assert len(file.read_text().splitlines()) == 3
    found, note = read_records(file, type(record))
    assert found == [record, replace(record, iteration=7), record]
    assert note is None
    drop_later_lines(file, 3)
    assert read_records(file, type(record)) == ([record, record], None)


@pytest.mark.parametrize(
    "record",
    [
        Summary([Validation("before", 0, {"val/ntp_loss": 5.0}), Validation(None, 2, {})]),
        SweepIndex(
            SweepBase(["a.yaml"], ["--x"], {"model": {"seed": None}}),
            [SweepEntry("a", "b", 0, "run", test=SweepTest("test", "done", 1.5))],
        ),
    ],
    ids=["summary", "sweep"],
)
def test_a_file_comes_back(tmp_path, record):
    for _ in range(2):  # a new one, and one that replaces it
        write_json(tmp_path / "a.json", record)
        assert read_record(tmp_path / "a.json", type(record)) == record
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_keys_that_a_record_does_not_have_are_ignored_and_defaults_taken(tmp_path):
    needed = {"id": "1", "output": "", "num_tokens": 1, "prompt_tokens": 2, "cut_tokens": 0}
    (tmp_path / "a.json").write_text(json.dumps(needed | {"finish": "eos", "scores": {"a": 1}}))
    answer = read_record(tmp_path / "a.json", Answer)
    assert asdict(answer) == needed | {
        "finish": "eos",
        "task": "",
        "length": None,
        "references": [],
        "score": None,
    }


WRONG = {
    "a field that is missing": ({"rows": 1}, "results is missing"),
    "another type": ({"rows": "1", "results": []}, "rows is '1'"),
    "a truth value for a number": ({"rows": True, "results": []}, "rows is True"),
    "nothing": ({"rows": None, "results": []}, "rows is None"),
    "no list": ({"rows": 1, "results": {}}, "results is {}"),
    "no record": ({"rows": 1, "results": [3]}, "results[0] is 3"),
    "a field inside": ({"rows": 1, "results": [{"task": 1}]}, "results[0].task is 1"),
    "no mapping": ({"rows": 1, "results": [], "interval": []}, "interval is []"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(tmp_path, content, message):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_record(file, Scores)
    assert error.value.what == message
    assert error.value.where == str(file)


def test_a_last_line_that_was_cut_off_is_noted_and_another_one_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    append_records(file, [POSITION])
    line = file.read_text()
    file.write_text(line + "\n" + line[:-20])
    found, note = read_records(file, Position)
    assert found == [POSITION]
    assert "line 3" in note
    for text in (line[:-20] + "\n" + line, line[:-20]):
        file.write_text(text)
        with pytest.raises(DataError, match=r"line 1 of a\.jsonl is not a JSON object"):
            read_records(file, Position)


def test_stages_are_found_wherever_the_schedule_is():
    stages = {"one": {"iterations": 2}}
    callback = {"class_path": "a.Schedule", "init_args": {"stages": stages}}
    other = {"class_path": "b.Other"}
    for config in (
        {"schedule": {"stages": stages}, "trainer": {"callbacks": None}},
        {"schedule": callback},
        {"trainer": {"callbacks": [other, callback]}},
        {"trainer": {"callbacks": callback}, "schedule": None},
    ):
        assert stages_of(config) == stages
    assert stages_of({"trainer": {"callbacks": [other]}}) == stages_of({}) == {}


def test_the_examples_in_the_docs_are_records(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "reading_a_run.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    tables = re.findall(r"\| field \| what \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    assert len(examples) == len(tables) == 2
    for kind, example, table in zip((Position, EntropyMap), examples, tables, strict=True):
        (tmp_path / "a.json").write_text(example)
        assert asdict(read_record(tmp_path / "a.json", kind)) == json.loads(example)
        names = {field.name for field in fields(kind)}
        assert (
            names
            >= set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
            >= names
            - {
                "iteration",
                "document",
            }
        )


def test_the_folder_of_a_checkpoint(tmp_path):
    assert folder_of(tmp_path / run_folder.CHECKPOINTS / "last.ckpt") == tmp_path


def test_neither_run_folders_nor_reports_nor_sweeps_need_lightning():
    code = "import sys, refine_pl.report.build, refine_pl.sweep; print('lightning' in sys.modules)"
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert outcome.stdout.strip() == "False"
