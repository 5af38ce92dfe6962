"""Lightning's callbacks in a real run: each does its work, or is refused before the run starts."""

import copy
import importlib
import inspect
import pickle
import pkgutil

import pytest
import torch
from lightning.pytorch import Callback, callbacks
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from runs import module, parameters, train, trainer

import refine_pl.callbacks
import refine_pl.training
from refine_pl.callbacks import ProgressBar
from refine_pl.errors import ConfigError
from refine_pl.training import Schedule, Stage
from refine_pl.training.callback_checks import UNFIT, check_callbacks

# Bases to derive from, and those that need a model of another layout: Lightning says so itself.
BASES = {
    "Callback",
    "Checkpoint",
    "ProgressBar",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BackboneFinetuning",
}
WORKING = {
    "DeviceStatsMonitor": {"cpu_stats": False},
    "EarlyStopping": {"monitor": "val/ntp_loss", "mode": "max", "patience": 0},
    "EMAWeightAveraging": {"decay": 0.5},
    "WeightAveraging": {},
    "LambdaCallback": {},
    "LearningRateMonitor": {},
    "ModelCheckpoint": {"monitor": "val/reward", "mode": "max"},
    "ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.5},
    "ModelSummary": {},
    "OnExceptionCheckpoint": {"dirpath": "."},
    "RichModelSummary": {},
    "RichProgressBar": {},
    "TQDMProgressBar": {},
    "ThroughputMonitor": {"batch_size_fn": len},
    "Timer": {"duration": {"seconds": 0}},
}
REFUSED = {
    "BatchSizeFinder": {},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "LearningRateFinder": {},
    "SpikeDetection": {},
    "StochasticWeightAveraging": {"swa_lrs": 0.01},
}
ITERATIONS = 6


def make(name):
    options = {**WORKING, **REFUSED}[name]
    return getattr(callbacks, name)(**options)


def test_every_stock_callback_is_in_one_list():
    named = set(callbacks.__all__)
    assert {*WORKING, *REFUSED} == named - BASES
    assert {kind.__name__ for kind in UNFIT} == set(REFUSED)
    assert len(named) >= 26


@pytest.mark.parametrize("name", sorted(WORKING))
def test_it_runs_beside_our_own(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    used, own = make(name), [] if "ProgressBar" in name else [ProgressBar()]
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    stages = {"a": Stage(2), "b": Stage(ITERATIONS - 2)}
    schedule = Schedule(stages)
    options = {"enable_progress_bar": True, "enable_checkpointing": True, "limit_val_batches": 1.0}
    if name == "WeightAveraging":
        monkeypatch.setattr(used, "should_update", lambda step_idx=None, epoch_idx=None: True)
    model = module()
    curve = train(model, iterations=99, callbacks=[*own, used, schedule], logger=logger, **options)
    early = {"Timer": {0, 1}, "EarlyStopping": {2}}
    assert len(curve.values) in early.get(name, {ITERATIONS})
    written = tmp_path / "lightning_logs/version_0/metrics.csv"
    if name == "LearningRateMonitor":
        assert "lr-AdamW" in written.read_text()
    if name == "ModelCheckpoint":
        assert used.best_model_path
        assert used.best_model_score is not None
    if name == "ModelPruning":
        assert any((p == 0).float().mean() > 0.4 for p in parameters(model).values())


def test_the_averaged_weights_are_those_of_the_end():
    average = callbacks.EMAWeightAveraging(decay=0.9)
    plain, averaged = module(), module()
    train(plain, iterations=4)
    train(averaged, iterations=4, callbacks=[average])
    start = module()
    for name, value in parameters(averaged).items():
        first, last = parameters(start)[name], parameters(plain)[name]
        assert (value - first).norm() < (last - first).norm() or torch.equal(first, last), name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_work_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} cannot be used"):
        train(module(), callbacks=[make(name)], enable_checkpointing=True)


WRONG = {
    "val/ntp_los": "did you mean val/ntp_loss",
    "val_loss": "nothing logs",
    "val/reward_other": "nothing logs",
    "reward/other/mean": "nothing logs",
}


@pytest.mark.parametrize("monitor", sorted(WRONG))
@pytest.mark.parametrize("kind", [callbacks.EarlyStopping, callbacks.ModelCheckpoint])
def test_a_scalar_that_nothing_logs_is_refused(monitor, kind):

    run = trainer(kind(monitor=monitor), enable_checkpointing=True, limit_val_batches=1.0)
    with pytest.raises(ConfigError) as error:
        check_callbacks(run, True, ["similarity"])
    assert WRONG[monitor] in str(error.value)
    check_callbacks(run, False, ["similarity"])  # another module may log it


def test_a_scalar_of_validation_needs_validation():
    stop = callbacks.EarlyStopping(monitor="val/reward_similarity")
    with pytest.raises(ConfigError, match="this run has none"):
        train(module(), callbacks=[stop])


# Copies --------------------------------------------------------------------------------------


def own_classes():
    """Every callback of the package, found in its modules."""
    found = set()
    for package in (refine_pl.callbacks, refine_pl.training):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for value in vars(importlib.import_module(info.name)).values():
                if inspect.isclass(value) and issubclass(value, Callback):
                    found.add(value)
    return sorted(
        (c for c in found if c.__module__.startswith("refine_pl.")), key=lambda c: c.__name__
    )


NEEDED = {
    "Schedule": {"stages": {"a": Stage(2)}},
    "IterationLimit": {"iterations": 2},
    "TokenBudget": {"max_tokens_seen": 100},
}


def test_all_own_callbacks_are_found():
    names = {c.__name__ for c in own_classes()}
    assert set(refine_pl.callbacks.__all__) <= names
    assert {"Schedule", "PostTraining", "TestTimeTraining", "Phase"} <= names
    assert len(names) >= 11


@pytest.mark.parametrize("kind", own_classes(), ids=lambda c: c.__name__)
def test_own_callbacks_can_be_copied_and_pickled(kind):
    callback = kind(**NEEDED.get(kind.__name__, {}))
    for other in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert type(other) is kind
        assert vars(other).keys() == vars(callback).keys()


def test_callbacks_and_loggers_survive_a_copy_in_the_middle_of_a_run(tmp_path):
    class Copies(Callback):
        made = 0

        def on_train_batch_end(self, trainer, pl_module, *_):
            for callback in trainer.callbacks:
                if type(callback).__module__.startswith("refine_pl."):
                    assert type(copy.deepcopy(callback)) is type(callback)
                    Copies.made += 1

    own = [
        kind(**NEEDED.get(kind.__name__, {}))
        for kind in map(
            vars(refine_pl.callbacks).get,
            ("ProgressBar", "RolloutRecorder", "RunSummary", "Throughput", "RandomState"),
        )
    ]
    logger = TensorBoardLogger(tmp_path)
    train(
        module(), iterations=2, callbacks=[*own, Copies()], logger=logger, enable_progress_bar=True
    )
    assert Copies.made == 2 * len(own)
