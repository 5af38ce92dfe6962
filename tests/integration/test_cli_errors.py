"""Bad configurations: a few lines that name the place, the value, the rule and the way out."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from bad_configurations import CASES
from command_line import CONFIG, Outcome, edited, run, write_config, write_documents

from refine_pl.cli import _text, _user_error, _wrapped
from refine_pl.errors import DataError

MAX_LINES = 12
MAX_COLUMNS = 100


# Refused after the run's folder was made.
LATE = {"tokens", "segments", "short documents", "rate"}


def assert_readable(outcome):
    """A refusal that a person can read."""
    text = outcome.stdout + outcome.stderr
    assert "Traceback" not in text
    lines = outcome.stderr[outcome.stderr.index("error: ") :].splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= MAX_COLUMNS
    assert outcome.code == 2


def message(outcome):
    """The message in one line, however it was wrapped."""
    return " ".join(outcome.stderr.split())


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    (tmp_path / "overlay.yaml").write_text("model:\n  seeed: 1\n")
    (tmp_path / "cli_errors_broken.py").write_text("nowhere\n")
    (tmp_path / "cli_errors_rewards.py").write_text(
        "from refine_pl.rewards import Reward\n"
        "class Style: ...\n"
        "class Round(Style): ...\n"
        "class Brackets(Reward):\n"
        "    def __init__(self, pairs: str, style: Style | None = None, weight: float = 1.0):\n"
        "        super().__init__(weight)\n"
        "    def score(self, rollouts):\n"
        "        raise RuntimeError('a bug')\n"
    )
    (tmp_path / "cli_errors_callback.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Broken(Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        raise RuntimeError('a bug')\n"
    )
    for name in ("cli_errors_broken", "cli_errors_callback", "cli_errors_rewards"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_number_of_cases():
    assert len(CASES) == 80
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.name for case in CASES} >= LATE


@pytest.mark.parametrize(("given", "fits"), [(60, 60), (300, MAX_COLUMNS), (1, 40)])
def test_lines_fit_the_terminal(given, fits, monkeypatch):
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((given, 24)))
    monkeypatch.setattr("sys.stderr", sys.__stderr__)
    lines = _wrapped("error: " + "word " * 60).splitlines()
    assert len(lines) >= 3
    assert fits - 20 < max(map(len, lines)) <= fits


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_configuration(workplace, case):
    file = workplace / "bad.yaml"
    text = case.edits if isinstance(case.edits, str) else yaml.safe_dump(edited(case.edits))
    file.write_text(text)
    before = {path for path in workplace.rglob("*") if "__pycache__" not in path.parts}

    outcome = run("fit", "--config", "bad.yaml", *case.options)

    assert_readable(outcome)
    for part in case.shows:
        assert part in message(outcome)
    if case.line:
        number = 1 + next(i for i, line in enumerate(text.splitlines()) if case.line in line)
        assert f"bad.yaml, line {number}" in message(outcome)
    new = {path for path in workplace.rglob("*") if "__pycache__" not in path.parts} - before
    if case.name in LATE:
        assert not [path for path in new if path.suffix == ".ckpt"]
    else:
        assert not new


def keys_of(values, above=()):
    """The keys of nested mappings and lists, without the free names of the rewards."""
    if isinstance(values, list):
        for index, item in enumerate(values):
            yield from keys_of(item, (*above, index))
    elif isinstance(values, dict):
        for name, item in values.items():
            if above != ("model", "rewards"):
                yield (*above, name)
            yield from keys_of(item, (*above, name))


def test_every_key_may_be_misspelt(workplace):
    keys = list(keys_of(CONFIG))
    assert len(keys) == 52
    for *above, name in keys:
        config = edited()
        place = config
        for part in above:
            place = place[part]
        wrong = name[:-2] + name[-1]
        place[wrong] = place.pop(name)
        text = yaml.safe_dump(config, sort_keys=False)
        (workplace / "bad.yaml").write_text(text)

        outcome = run("fit", "--config", "bad.yaml", "--print_config")

        assert_readable(outcome)
        lines = [line.strip(" -") for line in text.splitlines()]
        number = 1 + next(i for i, line in enumerate(lines) if line.startswith(f"{wrong}:"))
        assert f".{wrong} is not a known key" in f".{message(outcome)[7:]}"
        assert f"bad.yaml, line {number} " in message(outcome)
        assert f"did you mean {name}?" in message(outcome)
    assert not (workplace / "runs").exists()


def test_the_legal_configuration_is_not_refused(workplace):
    write_config(workplace / "good.yaml")
    assert run("fit", "--config", "good.yaml", "--print_config").code == 0


def test_a_saved_configuration_with_its_nulls_is_not_refused(workplace):
    write_config(workplace / "good.yaml")
    saved = run("fit", "--config", "good.yaml", "--print_config").stdout
    (workplace / "saved.yaml").write_text(saved)
    assert "null" in saved
    assert run("fit", "--config", "saved.yaml", "--print_config").stdout == saved


@pytest.mark.parametrize(
    "stderr", ["error: x\nTraceback (most recent call last)", "error: x\n" * 13]
)
def test_the_guard_notices(stderr):
    with pytest.raises(AssertionError):
        assert_readable(Outcome(2, "", stderr))


def test_errors_of_the_data_from_a_worker_process_are_short(workplace):
    """PyTorch sends an error of a worker on with the traceback in its text."""
    sent = DataError(
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 1\nrefine_pl.errors.DataError: a corrupt row\n  where:   x, '
        "line 3\n"
    )
    assert _text(_user_error(sent)) == "a corrupt row\n  where:   x, line 3"


def test_a_user_error_under_another_error_is_found():
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = DataError("empty")
    assert _text(_user_error(wrapped)) == "empty"
    assert _user_error(RuntimeError("a bug")) is None


def test_faults_keep_their_traceback(workplace):
    config = {
        "trainer.logger": False,
        "trainer.enable_checkpointing": False,
        "trainer.callbacks": [{"class_path": "cli_errors_callback.Broken"}],
    }
    write_config(workplace / "bug.yaml", config)
    with pytest.raises(RuntimeError, match="a bug"):
        run("fit", "--config", "bug.yaml")


def test_a_run_is_never_written_over(workplace):
    write_config(workplace / "good.yaml", {"trainer.logger.class_path": "TensorBoardLogger"})
    folder = ["--trainer.logger.save_dir", "runs", "--trainer.logger.version", "0"]
    options = ["--config", "good.yaml", *folder, "--trainer.limit_train_batches", "1"]
    assert run("fit", *options).code == 0
    (saved,) = workplace.rglob("config.yaml")
    content = saved.read_text()

    outcome = run("fit", *options)

    assert_readable(outcome)
    assert "already holds a run" in message(outcome)
    assert saved.read_text() == content
    assert yaml.safe_load(content)["model"]["selector"]["init_args"]["min_prefix"] == 4


@pytest.mark.slow
def test_interrupted_run_says_where_the_checkpoint_is(workplace):
    write_config(
        workplace / "long.yaml",
        {
            "trainer.max_epochs": 100_000,
            "trainer.callbacks.0.init_args": {"every_n_train_steps": 1, "save_last": True},
        },
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "refine_pl", "fit", "--config", "long.yaml"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        # Tests that run in the background of a shell have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        _wait_for(workplace, "last.ckpt", process)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    # The newest: last.ckpt, or that of a batch whose last.ckpt was not written any more.
    newest = max(workplace.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert f"--ckpt_path {newest.relative_to(workplace)}" in stderr.splitlines()[-1]


def _wait_for(folder, name, process):
    for _ in range(600):
        if list(folder.rglob(name)):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    raise AssertionError(f"no {name} was written")


def test_what_the_trainer_refuses_late(tmp_path, monkeypatch):
    """Lightning compares this setting with the number of batches, when the fit has begun."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    edits = {"trainer.val_check_interval": 1000, "data.init_args.num_validation_documents": 1}
    outcome = run("fit", "--config", write_config(tmp_path / "c.yaml", edits))
    assert outcome.code == 2
    assert "val_check_interval" in outcome.stderr
    assert "Traceback" not in outcome.stderr
