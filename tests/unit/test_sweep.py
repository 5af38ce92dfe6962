"""Pieces of a sweep: which overlays, which checkpoint, why a run failed."""

import json
import os
import sys
import zipfile

import pytest

from refine_pl.errors import ConfigError, DataError
from refine_pl.sweep.index import continued
from refine_pl.sweep.loop import duration
from refine_pl.sweep.overlays import changes, check_effect, find_overlays
from refine_pl.sweep.process import clear, newest_checkpoint, prepare, reason, start
from refine_pl.sweep.table import last_numbers, results_table, spread
from refine_pl.training.run_folder import SweepBase, SweepEntry, SweepIndex, SweepOverlay


@pytest.fixture
def run(tmp_path):
    """A run folder with some files of a broken attempt."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "run.log", "summary.json"):
        (folder / name).touch()
    return folder


def checkpoint(run, name, time, whole=True):
    path = run / "checkpoints" / name
    if whole:
        zipfile.ZipFile(path, "w").close()
    else:
        path.write_bytes(b"PK")
    os.utime(path, ns=(time, time))
    return path


def test_without_a_checkpoint_a_run_starts_anew_and_the_log_stays(run):
    checkpoint(run, "last.ckpt", 1, whole=False)
    assert newest_checkpoint(run) is None
    assert prepare(run) is None
    assert [path.name for path in run.iterdir()] == ["run.log"]


def test_a_run_goes_on_from_the_newest_whole_checkpoint(run):
    checkpoint(run, "step=9.ckpt", 9, whole=False)
    checkpoint(run, "step=2.ckpt", 2)
    checkpoint(run, "last.ckpt", 2)
    found = prepare(run)
    assert found.name == "resumed_from.ckpt"
    assert found.exists()
    assert not (run / "config.yaml").exists()
    assert (run / "summary.json").exists()
    # Interrupted again before anything was saved, then after.
    assert prepare(run) == found
    clear(run)
    assert found.exists()
    checkpoint(run, "last.ckpt", 3)
    clear(run)
    assert not found.exists()
    assert newest_checkpoint(run).name == "last.ckpt"


def test_a_linked_checkpoint_keeps_its_name(run):
    target = checkpoint(run, "step=2.ckpt", 2)
    (run / "checkpoints" / "last.ckpt").symlink_to(target.name)
    assert prepare(run).exists()
    assert target.exists()


def test_the_reason_of_a_failure_is_that_of_the_last_attempt(tmp_path):
    log = tmp_path / "log"
    first = "error: the first\n"
    log.write_text(f"{first}$ command\nsome line\nerror: 3 do not fit\n  where:   there\n")
    assert reason(log, len(first), 2) == "error: 3 do not fit where:   there"
    log.write_text(f"{first}Traceback\n  File\nValueError: odd\n")
    assert reason(log, len(first), 1) == "ValueError: odd"
    assert reason(log, log.stat().st_size, 1) == "exit code 1"
    assert reason(log, 0, -9) == "ended by signal 9 (SIGKILL)"


def test_output_goes_to_the_log(tmp_path):
    command = [sys.executable, "-c", "import sys; print('a'); sys.stderr.write('b'); sys.exit(4)"]
    with (tmp_path / "held").open("w") as held:
        assert start(command, tmp_path / "log", held.fileno()).wait() == 4
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].startswith("$ ")
    assert set(lines[1:]) == {"a", "b"} or lines[1:] == ["ba"]


def test_overlays_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("16", "2", "x"):
        (tmp_path / "sizes").mkdir(exist_ok=True)
        (tmp_path / "sizes" / f"{name}.yaml").touch()
    paths = [str(tmp_path / "sizes" / "x.yaml"), str(tmp_path)]
    found = find_overlays(paths, "configs/tiny.yaml", with_base=True)
    assert [o.label for o in found] == ["base/tiny", "sizes/x", "sizes/2", "sizes/16"]
    assert [o.label for o in find_overlays([], "configs/tiny.yaml", False)] == ["base/tiny"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \.yaml file"):
        find_overlays([str(tmp_path / "empty")], "tiny.yaml", False)


def test_changes():
    before = {"a": {"b": 1, "c": [1]}, "d": {}, "e": {"f": 2}}
    after = {"a": {"b": 1, "c": [2]}, "d": {"g": None}, "e": {}}
    expected = {"a.c": [2], "d.g": None, "e": {}, "d": None, "e.f": None}
    assert changes(before, after) == expected
    assert changes(before, before) == {}


def test_an_overlay_that_every_stage_overrides_has_no_effect():
    changed = {"model.rollout_length": 1, "model.selector.init_args.selection_temperature": 2.0}
    overlay = SweepOverlay("1", "length", None, changed)
    stages = {
        "one": {"iterations": 1, "rollout_length": 3, "policy_weight": None},
        "two": {"iterations": 1, "ramp": {"rollout_length": [1, 3]}},
    }
    with pytest.raises(ConfigError, match=r"model\.rollout_length of length/1 has no effect"):
        check_effect(overlay, {"schedule": {"stages": stages}})
    stages["two"] = {"iterations": 1, "settings": {"selector.selection_temperature": 1.0}}
    check_effect(overlay, {"schedule": {"stages": stages}})
    stages["one"] = {"iterations": 1, "ramp": {"selector.selection_temperature": [2.0, 1.0]}}
    with pytest.raises(ConfigError, match=r"its own selector\.selection_temperature"):
        check_effect(overlay, {"schedule": {"stages": stages}})
    check_effect(overlay, {"trainer": {"callbacks": None}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[]", "does not hold a JSON object but list"),
        ('{"base": {}}', "base.configs is missing"),
        ('{"base": {"configs": []}}', "entries is missing"),
        ('{"base": {"configs": []}, "entries": [{"overlay": 1}]}', "entries[0].overlay is 1"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, text, message):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(DataError) as error:
        continued(tmp_path, SweepIndex(SweepBase([]), []))
    assert message in str(error.value)
    assert str(tmp_path / "sweep.json") in str(error.value)


def test_numbers_of_seeds(tmp_path):
    assert spread("score", [1.0, 2.0, float("nan")]) == ("1.5", "± 0.7")
    assert spread("val/accuracy", [0.1, 0.2]) == ("15.00%", "± 7.07%")
    assert spread("val/ntp_loss", [1.0]) == ("1.0000", "")
    assert spread("val/ntp_loss", []) == ("–", "")
    entry = SweepEntry("b", "a", 0, "nowhere", "done")
    failed = SweepEntry("b", "a", 1, "nowhere", "failed")
    assert results_table(tmp_path, [entry, failed]).row_count == 1
    (tmp_path / "nowhere" / "test").mkdir(parents=True)
    interval = {"rows": 2, "low": 0, "high": 100}
    results = [
        {"task": "a", "length": 1, "rule": "released", "mean": 10.0} | interval,
        {"task": "a", "length": 1, "rule": "further", "mean": 90.0} | interval,
        {"task": "b", "length": None, "rule": "released", "mean": 20.0} | interval,
    ]
    scores = json.dumps({"rows": 4, "results": results})
    (tmp_path / "nowhere" / "test" / "scores.json").write_text(scores)
    assert last_numbers(tmp_path / "nowhere") == {"score a 1": 10.0, "score b": 20.0}
    (column,) = results_table(tmp_path, [entry]).columns[2:]
    assert (column.header, list(column.cells)) == ("test score, %", ["15.0"])
    assert [duration(s) for s in (3, 300, 9000)] == ["3 s", "5 min", "2.5 h"]
