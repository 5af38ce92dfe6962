"""The command ``report``: which run folders it reads, and what it says of damaged ones."""

import json
import re
from pathlib import Path

import pytest
from command_line import run, write_config, write_documents
from report_pages import SECTIONS, report
from report_runs import evaluation_run, sweep, training_run, write_lines

from refine_pl.report.reading import labels


def test_a_run_of_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    stages = {"warm-up": {"iterations": 2, "policy_weight": 0.0}, "refine": {"iterations": 4}}
    edits = {
        "trainer.max_epochs": -1,
        "trainer.logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": "tiny"},
        },
        "trainer.callbacks": [
            {
                "class_path": "refine_pl.callbacks.RolloutRecorder",
                "init_args": {"every_n_iterations": 2},
            },
            {"class_path": "refine_pl.callbacks.RunSummary"},
            {
                "class_path": "refine_pl.training.Schedule",
                "init_args": {"stages": stages, "validate": True},
            },
        ],
        "data.init_args.num_validation_documents": 1,
    }
    config = write_config(tmp_path / "config.yaml", edits)
    outcome = run("fit", "--config", config)
    assert outcome.code == 0, outcome.stderr
    _, html, page, _ = report(tmp_path / "out", tmp_path / "runs" / "tiny" / "version_0")
    absent = ("Settings that differ", "Evaluation", "Comparison", "Ablations")
    assert re.findall(r"<h2>(.*?)</h2>", html) == [s for s in SECTIONS if s not in absent]
    assert 'class="note"' not in html
    assert "warm-up 2, refine 4" in page.text("runs")
    assert "before after warm-up after refine" in page.text("validation")
    assert "exact mine" in page.text("rollouts")
    assert {"curve_reward_exact_mean", "entropy_0_3", "entropy_0_6"} <= {
        path.stem for path in (tmp_path / "out" / "figures").iterdir()
    }


def refused(*argv):
    outcome = run("report", *argv)
    assert outcome.code == 2
    assert "Traceback" not in outcome.stderr
    return " ".join(outcome.stderr.split())


def test_folders_that_are_no_runs(tmp_path):
    assert "there is no folder" in refused(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in refused(tmp_path / "empty")
    first = training_run(tmp_path / "runs" / "tiny" / "version_2")
    second = training_run(tmp_path / "runs" / "tiny" / "version_10")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "tiny"):
        message = refused(folder)
        assert f"is not a run itself but holds 2: {first}, {second}" in message
        assert f"refine-pl report {second}" in message
    assert f"runs in {tmp_path / 'runs' / 'tiny'}: {first}" in refused(
        tmp_path / "runs" / "tiny" / "version_3"
    )
    assert "is named twice" in refused(first, second, tmp_path / "runs/../runs/tiny/version_2")
    assert "is a file" in refused(first / "summary.json")
    assert "cannot be written" in refused(first, "--out", first / "summary.json")
    assert "did you mean --out?" in refused(first, "--outt", "x")
    assert "are required: RUN" in refused()


def change(key, value):
    def edit(text):
        row = json.loads(text.splitlines()[0])
        row[key] = value
        return json.dumps(row) + "\n" + "\n".join(text.splitlines()[1:]) + "\n"

    return edit


DAMAGED = {
    "rollouts.jsonl": [
        (lambda text: "{}\n" + text, "line 1: iteration is missing"),
        (lambda text: "nonsense\n" + text, "line 1 of rollouts.jsonl is not a JSON object"),
        (change("rollouts", [{"text": "a"}]), "rollouts[0].reward is missing"),
    ],
    "entropy.jsonl": [
        (change("entropy", [1.0]), "unequal lengths"),
        (change("scored", [99]), "tokens that the document does not have"),
        (change("borders", ["x"]), "borders[0] is 'x'"),
    ],
    "summary.json": [
        (lambda text: text[:40], "summary.json is not JSON"),
        (lambda _: "[]", "not hold a JSON object but list"),
        (lambda _: "{}", "validations is missing"),
    ],
    "config.yaml": [
        (lambda _: "a: [1", "config.yaml is not YAML"),
        (lambda _: "1", "config.yaml does not hold a mapping"),
    ],
    "answers.jsonl": [
        (lambda text: text + text, "is there twice"),
        (change("score", 1.5), "score is 1.5"),
        (change("output", 3), "output is 3"),
        (change("references", [1]), "references[0] is 1"),
    ],
    "scores.json": [
        (lambda _: '{"rows": 1, "results": [{"task": "a"}]}', "results[0].length is missing"),
        (lambda _: "\udcff", "scores.json cannot be read"),
    ],
    "card.json": [(lambda _: "null", "card.json does not hold a JSON object")],
    "sweep.json": [
        (lambda _: '{"base": {"configs": []}, "entries": []}', "the sweep has no entries"),
        (lambda _: '{"base": {"configs": []}, "entries": [{}]}', "entries[0].overlay is missing"),
    ],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(name, tmp_path):
    kind = next(
        make
        for make, files in (
            (sweep, ["sweep.json"]),
            (evaluation_run, ["answers.jsonl", "scores.json", "card.json"]),
            (training_run, list(DAMAGED)),
        )
        if name in files
    )
    folder = kind(tmp_path / "run")
    whole = (folder / name).read_text()
    for damage, message in DAMAGED[name]:
        (folder / name).write_text(damage(whole), errors="surrogateescape")
        found = refused(folder)
        assert str(folder / name) in found
        for words in message.split(": "):
            assert words in found, found


def test_missing_and_cut_off_parts_are_notes(tmp_path):
    folder = training_run(tmp_path / "a")
    for name in ("config.yaml", "entropy.jsonl", "summary.json"):
        (folder / name).unlink()
    rollouts = folder / "rollouts.jsonl"
    rollouts.write_text(rollouts.read_text()[:-20])
    (events,) = folder.glob("events*")
    events.write_bytes(events.read_bytes()[:-5])
    (folder / "events.out.tfevents.2").write_bytes(b"")
    text = report(tmp_path / "out", folder)[2].text("runs")
    for note in (
        "There is no config.yaml",
        "There is no entropy.jsonl",
        "There is no summary.json",
        "The last line of rollouts.jsonl (line 3) is cut off",
        "can be read up to byte",
        "events.out.tfevents.2 is empty",
    ):
        assert note in text


def test_an_evaluation_that_did_not_end(tmp_path):
    folder = evaluation_run(tmp_path / "a")
    (folder / "scores.json").unlink()
    (folder / "card.json").unlink()
    _, _, page, _ = report(tmp_path / "out", folder)
    assert "There is no scores.json: the evaluation did not end. 60 rows" in page.text("runs")
    assert "No run has scores" in page.text("evaluation")


def test_a_folder_where_nothing_was_logged(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.yaml").write_text("a: 1\n")
    assert "the run logged nothing" in refused(folder)
    (folder / "events.out.tfevents.1").write_bytes(b"")
    message = refused(folder)
    assert "holds nothing to report" in message
    assert "events.out.tfevents.1 is empty" in message


def test_predictions_have_no_scores(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    row = {"id": "1", "prompt_tokens": 3, "cut_tokens": 0, "num_tokens": 2, "finish": "length"}
    write_lines(folder / "predictions.jsonl", [row | {"output": "an answer"}])
    assert "an answer" in report(tmp_path / "out", folder)[2].text("evaluation")


def test_short_names_differ():
    paths = ["/r/a/version_0", "/r/b/version_0", "/r/b/version_1", "/x/eval"]
    names = labels([Path(path) for path in paths])
    assert names == ["a/version_0", "b/version_0", "b/version_1", "eval"]
