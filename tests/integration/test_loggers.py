"""Loggers of every kind: folders, settings, tables and pictures; chosen in YAML, run by fit."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from command_line import GONE, run, write_config, write_documents
from lightning.pytorch.loggers import CSVLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from refine_pl.commands.logged_settings import hyper_parameters, scalar_layout
from refine_pl.training.metrics import metrics

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
CSV = "lightning.pytorch.loggers.CSVLogger"
SHORT = {
    "trainer.callbacks": GONE,
    "trainer.max_epochs": GONE,
    "schedule": {"stages": {"refine": {"iterations": 1}}},
    "recorder.every_n_iterations": 1,
    "data.init_args.num_validation_documents": 1,
}


class Calls:
    """Anything may be called; what was called is kept."""

    def __init__(self, names):
        self.calls = []
        for name in names:
            setattr(self, name, lambda *a, _n=name, **k: self.calls.append((_n, a, k)))


class Fake(Logger):
    """A logger whose runs have ids of their own and share a folder, as those of W&B and MLflow."""

    made: ClassVar = []

    def __init__(self, save_dir="shared", version=None):
        super().__init__()
        self._save_dir, self._version = save_dir, version
        self.metrics, self.settings, self.shown = [], {}, []
        Fake.made.append(self)
        self._number = f"run{len(Fake.made)}"

    name = "project"
    save_dir = property(lambda self: self._save_dir)
    version = property(lambda self: self._version or self._number)

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        self.settings.update(params)


class Unplaced(Fake):
    save_dir = None


class LikeWandb(Fake):
    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        self.shown.append((key, columns, data, step))

    def log_image(self, key, images, step=None, **kwargs):
        self.shown.append((key, images, step))


class LikeMLflow(Fake):
    run_id = "abc"

    def __init__(self, save_dir="shared", version=None):
        super().__init__(save_dir, version)
        self.experiment = Calls(["log_text", "log_image"])


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "own_loggers", sys.modules[__name__])
    Fake.made.clear()
    write_documents(tmp_path / "docs")

    def fit(logger, *options):
        write_config(tmp_path / "own.yaml", {**SHORT, "trainer.logger": logger})
        return run("fit", "--config", "own.yaml", *options)

    return fit


def of(name, /, **options):
    path = name if "." in name else f"own_loggers.{name}"
    return {"class_path": path, "init_args": options}


def snapshot():
    """What runs wrote, by file."""
    return {
        p: p.read_bytes() for p in Path().glob("*/**/*") if p.is_file() and "cache" not in p.parts
    }


def folders():
    return sorted(p.parent for p in Path().rglob("config.yaml"))


LOGGERS = {
    "none": (False, "runs/own/version_{}"),
    "unplaced": (of("Unplaced"), "runs/own/project/run{}"),
    "csv": (of(CSV, save_dir="runs", name="own"), "runs/own/version_{}"),
    "wandb": (of("LikeWandb"), "shared/project/run{}"),
    "mlflow": (of("LikeMLflow"), "shared/project/run{}"),
    "list": ([of("Fake"), of(CSV, save_dir="csv")], "shared/project/run{}"),
}


@pytest.mark.parametrize("kind", LOGGERS)
def test_a_second_run_has_a_folder_of_its_own(workplace, kind):
    logger, place = LOGGERS[kind]
    first = workplace(logger)
    assert first.code == 0, first.stderr
    before = snapshot()
    second = workplace(logger)
    assert second.code == 0, second.stderr
    numbers = [1, 2] if "project" in place else [0, 1]
    assert folders() == [Path(place.format(n)) for n in numbers]
    for folder in folders():
        names = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "summary.json", "rollouts.jsonl", "checkpoints"} <= names
        assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["num_segments"] == 2
    after = snapshot()
    assert all(
        after[path] == content for path, content in before.items() if path.name != "own.yaml"
    )
    assert str(folders()[1]) in second.stdout.replace("\n", "")


TAKEN = {
    "none": (False, ["--trainer.default_root_dir", "mine"], "mine"),
    "csv": (of(CSV, save_dir="mine", version=0), [], "mine/lightning_logs/version_0"),
    "tensorboard": (
        of(TENSORBOARD, save_dir="mine", version="a"),
        [],
        "mine/own/a",
    ),
    "wandb": (of("LikeWandb", version="again"), [], "shared/project/again"),
    "second of two": (
        [of("Fake"), of(CSV, save_dir="mine", version=0)],
        [],
        "mine/lightning_logs/version_0",
    ),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(workplace, kind):
    logger, options, place = TAKEN[kind]
    assert workplace(logger, *options).code == 0
    before = snapshot()
    again = workplace(logger, *options)
    assert again.code == 2
    assert f"{place} already holds a run" in re.sub(r"\s+", " ", again.stderr).replace(
        str(Path().absolute()) + "/", ""
    )
    assert "Traceback" not in again.stderr
    assert snapshot() == before


def test_hints_are_those_of_the_logger(workplace):
    hints = {
        "none": (False, None),
        "csv": (of(CSV, save_dir="runs", name="own"), "metrics.csv"),
        "tensorboard": (of(TENSORBOARD, save_dir="runs", name="own"), "tensorboard --logdir"),
        "both": ([of("Fake"), of(TENSORBOARD, save_dir="b")], "tensorboard --logdir b"),
    }
    for logger, words in hints.values():
        said = workplace(logger).stdout
        assert "run folder" in said
        assert ("look at it" in said) == (words is not None)
        assert ("tensorboard" in said) == ("tensorboard" in (words or ""))
        assert (words or "") in said
    assert len(hints) == 4


# What loggers are given ----------------------------------------------------------------------


def test_a_logger_with_tables_and_images_gets_them(workplace):
    assert workplace(of("LikeWandb")).code == 0
    (logger,) = Fake.made
    assert logger.settings["model"]["num_segments"] == 2
    assert logger.settings["data"]["init_args"]["sequence_length"] == 48
    (table, picture) = logger.shown
    assert (table[0], table[3], picture[0], picture[2]) == (
        "rollouts/table",
        1,
        "rollouts/entropy",
        1,
    )
    assert table[1][-4:] == ["reward", "exact", "mine", "advantage"]
    lines = Path("shared/project/run1/rollouts.jsonl").read_text().splitlines()
    drawn = [rollout for line in lines for rollout in json.loads(line)["rollouts"]]
    assert [row[table[1].index("rollout")] for row in table[2]] == [r["text"] for r in drawn]
    assert picture[1][0].shape == (300, 1000, 4)
    assert {"train/loss", "val/ntp_loss"} <= {name for _, m in logger.metrics for name in m}


def test_a_logger_with_artifacts_gets_files(workplace):
    assert workplace(of("LikeMLflow")).code == 0
    (logger,) = Fake.made
    named = {name: args for name, args, _ in logger.experiment.calls}
    files = [args[-1] for _, args, _ in logger.experiment.calls]
    assert files == ["config.yaml", "rollouts/table_000001.md", "rollouts/entropy_000001.png"]
    assert {args[0] for args in named.values()} == {"abc"}
    assert logger.experiment.calls[0][1][1] == Path("shared/project/run1/config.yaml").read_text()


def test_beside_csv_they_are_files(workplace):
    assert workplace(of(CSV, save_dir="runs", name="own")).code == 0
    folder = Path("runs/own/version_0")
    assert "| position | prefix |" in (folder / "rollouts/table_000001.md").read_text()
    assert (folder / "rollouts/entropy_000001.png").read_bytes()[:4] == b"\x89PNG"
    settings = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert settings["model"]["rollout_length"] == 3
    with (folder / "metrics.csv").open() as file:
        assert "val/ntp_loss" in next(csv.reader(file))


def test_tensorboard_has_settings_and_an_order(workplace):
    assert workplace(of(TENSORBOARD, save_dir="runs", name="own")).code == 0
    events = EventAccumulator("runs/own/version_0")
    events.Reload()
    tables = events.PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(tables)
    assert b"model.num_segments" in tables["_hparams_/session_start_info"]
    assert b"val/ntp_loss" in tables["_hparams_/experiment"]
    assert "hp_metric" not in events.Tags()["scalars"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert "run/config/text_summary" in events.Tags()["tensors"]
    (first, *_) = events.Scalars("val/ntp_loss")
    assert first.value > 1


def test_val_and_reward_come_first_and_no_scalar_is_missing():
    layout = scalar_layout()
    assert list(layout)[:2] == ["val", "reward"]
    charts = [name for group in layout.values() for name in group]
    assert sorted(charts) == sorted(metric.name for metric in metrics())
    patterns = [p for group in layout.values() for _, (p,) in group.values()]
    assert sum(bool(re.match(p, "val/ntp_loss")) for p in patterns) == 1


def test_settings_become_a_flat_table():
    config = {
        "model": {"selector": {"class_path": "a.B", "init_args": {"min_prefix": 3}}, "lr": None},
        "trainer": {"max_epochs": 2, "logger": {"class_path": "x"}, "devices": [0, 1]},
    }
    assert hyper_parameters(config) == {
        "model.selector": "a.B",
        "model.selector.min_prefix": 3,
        "trainer.max_epochs": 2,
        "trainer.devices": "[0, 1]",
    }


def test_an_installed_tracker_is_given_what_the_fake_is():
    """The methods that the fakes have are those of Lightning's loggers."""
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    assert {"log_text", "log_image", "log_hyperparams"} <= set(dir(WandbLogger))
    assert {"run_id", "experiment", "log_hyperparams"} <= set(dir(MLFlowLogger))
    assert not hasattr(CSVLogger, "log_image")


def test_a_job_that_is_queued_again_goes_on_in_its_folder(workplace):
    """Without a logger it is the folder that the checkpoint of the first job lies in."""
    options = ["--trainer.default_root_dir", "job"]
    assert workplace(False, *options).code == 0
    (checkpoint, *_) = Path("job/checkpoints").glob("*.ckpt")
    assert workplace(False, *options, "--ckpt_path", checkpoint).code == 2
    saved = checkpoint.rename("job/hpc_ckpt_1.ckpt")
    longer = ["--schedule.stages.refine.iterations", "2"]
    again = workplace(False, *options, *longer, "--ckpt_path", saved)
    assert again.code == 0, again.stderr
    lines = Path("job/rollouts.jsonl").read_text().splitlines()
    assert {json.loads(line)["iteration"] for line in lines} == {1, 2}
