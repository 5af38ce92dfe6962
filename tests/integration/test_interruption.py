"""A run that is asked to stop finishes its update, saves, and goes on as if nothing had been."""

import multiprocessing
import os
import shlex
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from command_line import run, write_config, write_documents
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from processes import run_processes
from runs import Curve, RowsData, assert_same_parameters, module, trainer
from stopped_runs import stopped

from refine_pl import interrupts
from refine_pl.callbacks import RandomState
from refine_pl.data import ResumableLoader
from refine_pl.interrupts import SIGNALS, Interrupted, heeded
from refine_pl.training import Schedule, Stage, interruption
from refine_pl.training.checkpoint_files import WholeCheckpointIO, save_whole
from refine_pl.training.interruption import Interruption, SignalConnector
from refine_pl.training.module import RefineModule
from refine_pl.training.stopping import last_checkpoint

EPOCH, TOTAL = 3, 7  # batches
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138}


class Sends(Callback):
    """A signal to this process, in a hook of its choice, when so many iterations are done."""

    def __init__(self, hook, iteration, signum=signal.SIGTERM):
        self.sent = 0

        def send(trainer, pl_module, *_):
            if pl_module.iteration == iteration and not self.sent:
                self.sent += 1
                os.kill(os.getpid(), signum)
                time.sleep(0.01)

        setattr(self, hook, send)


def prepared(folder, *callbacks, checkpoint=None, **options):
    """A trainer as the command line makes it."""
    keeper = checkpoint or ModelCheckpoint(folder, "{step}", save_top_k=-1, save_last=True)
    stages = {"a": Stage(2, policy_weight=0.0), "b": Stage(TOTAL - 2)}
    curve = Curve()
    made = trainer(
        RandomState(),
        *callbacks,
        Schedule(stages),
        curve,
        keeper,
        Interruption(),
        enable_checkpointing=True,
        limit_val_batches=1.0,
        **options,
    )
    save_whole(made)
    made._signal_connector = SignalConnector(made)
    return made, curve


def fit(folder, *callbacks, ckpt_path=None, **options):
    model = module()
    made, curve = prepared(folder, *callbacks, **options)
    with heeded():
        made.fit(model, datamodule=RowsData(), ckpt_path=ckpt_path)
    return model, curve


def interrupted(folder, *callbacks, **options):
    """The checkpoint of a run that a signal ended, and what it logged."""
    made, curve = prepared(folder, *callbacks, **options)
    with heeded(), pytest.raises(SystemExit) as left:
        made.fit(module(), datamodule=RowsData())
    assert isinstance(left.value.__context__, Interrupted)
    return last_checkpoint(made), curve, left.value.__context__


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"))


MOMENTS = {
    "in an update": ("on_train_batch_start", 1, 2),
    "in the last update of an epoch": ("on_train_batch_start", 2, 3),
    "in the update before a border of stages": ("on_train_batch_start", 1, 2),
    "in a later epoch": ("on_train_batch_start", 4, 5),
    "in a validation between stages": ("on_validation_batch_start", 2, 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_follows_is_what_would_have_followed(tmp_path, whole, moment):
    """To the last bit, wherever the signal finds the run."""
    hook, iteration, done = MOMENTS[moment]
    checkpoint, before, stop = interrupted(tmp_path / "first", Sends(hook, iteration))
    assert stop.signum == signal.SIGTERM
    assert len(before.values) == done
    assert checkpoint.name == "last.ckpt"
    model, after = fit(tmp_path / "second", ckpt_path=checkpoint)
    assert before["train/loss"] + after["train/loss"] == whole[1]["train/loss"]
    assert_same_parameters(model, whole[0], rtol=0, atol=0)
    numbers = dict(before.validations) | dict(after.validations)
    assert numbers == dict(whole[1].validations)


def test_a_signal_before_the_first_update_ends_the_run_at_once(tmp_path):
    checkpoint, before, _ = interrupted(tmp_path, Sends("on_validation_batch_start", 0))
    assert checkpoint is None
    assert before.values == []


@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_validation_batch_start", "on_train_end", "on_fit_end"]
)
def test_a_signal_in_what_is_due_last_lets_the_run_end(tmp_path, whole, hook):
    iteration = TOTAL - 1 if hook == "on_train_batch_start" else TOTAL
    sends = Sends(hook, iteration)
    model, curve = fit(tmp_path, sends)
    assert sends.sent == 1
    assert curve.validations == whole[1].validations
    assert_same_parameters(model, whole[0], rtol=0, atol=0)


def test_a_second_signal_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "_SAME_REQUEST_S", 0.0)
    first, second = (Sends("on_train_batch_start", 4, s) for s in (signal.SIGTERM, signal.SIGINT))
    checkpoint, before, stop = interrupted(tmp_path, first, second)
    assert stop.signum == signal.SIGINT
    assert len(before.values) == 4  # the fifth was not finished
    assert torch.load(checkpoint, weights_only=True)["refine_pl"]["iteration"] == 2  # after a stage


def test_a_request_that_comes_twice_is_one(tmp_path):
    """As a terminal and a launcher pass it on."""
    pair = (Sends("on_train_batch_start", 1), Sends("on_train_batch_start", 1, signal.SIGINT))
    _, before, stop = interrupted(tmp_path, *pair)
    assert stop.signum == signal.SIGTERM
    assert len(before.values) == 2


def test_processes_that_read_data_leave_it_to_the_one_that_trains(tmp_path, whole):
    """A cluster signals all processes of a job, a terminal too."""
    reached = []

    class Workers(RowsData):
        def train_dataloader(self):
            order = self._order(len(self.training.rows), self.batch_size, True)
            return ResumableLoader(self.training, order, "rows", num_workers=1)

    class SendsToAll(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            if pl_module.iteration == 1:
                reached.extend(multiprocessing.active_children())
                for signum in (signal.SIGINT, signal.SIGTERM):
                    for number in (*(child.pid for child in reached), os.getpid()):
                        os.kill(number, signum)

    made, curve = prepared(tmp_path / "first", SendsToAll())
    with heeded(), pytest.raises(SystemExit):
        made.fit(module(), datamodule=Workers())
    assert len(reached) == 1
    assert len(curve.values) == 2
    reached[0].join(60)
    assert reached[0].exitcode == 0
    model, _ = fit(tmp_path / "second", ckpt_path=last_checkpoint(made))
    assert_same_parameters(model, whole[0], rtol=0, atol=0)


@pytest.mark.parametrize("save_last", [False, "link"])
def test_a_run_without_a_last_checkpoint_gets_one_for_the_interruption(tmp_path, save_last):
    keeper = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_last=save_last)
    sends = Sends("on_train_batch_start", 3)
    checkpoint, *_ = interrupted(tmp_path, sends, checkpoint=keeper)
    assert (tmp_path / "interrupted-step=8.ckpt").is_file()
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 8
    if save_last:
        assert (tmp_path / "last.ckpt").resolve().name == "interrupted-step=8.ckpt"


def test_a_plugin_that_saves_in_the_background_saves_whole_files_too(tmp_path, whole):
    plugin = AsyncCheckpointIO()
    sends = Sends("on_train_batch_start", 3)
    checkpoint, *_ = interrupted(tmp_path / "first", sends, plugins=[plugin])
    assert isinstance(plugin.checkpoint_io, WholeCheckpointIO)
    model, _ = fit(tmp_path / "second", ckpt_path=checkpoint, plugins=[AsyncCheckpointIO()])
    assert_same_parameters(model, whole[0], rtol=0, atol=0)


def test_a_plugin_of_the_users_own_stays(tmp_path):
    class Own(WholeCheckpointIO):
        pass

    for plugin in (Own(), AsyncCheckpointIO(Own())):
        made, _ = prepared(tmp_path, plugins=[plugin])
        assert made.strategy.checkpoint_io is plugin
        assert isinstance(getattr(plugin, "checkpoint_io", plugin), Own)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_process_stops_all_of_them_after_the_same_update(tmp_path, asked):
    left = {"signal": int(signal.SIGTERM), "updates": 3, "saved": 3}
    assert run_processes(stopped, 2, tmp_path, asked) == [left, left]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    edits = {"trainer.max_epochs": 3, "trainer.callbacks.0.init_args.filename": "{step}"}
    write_config(tmp_path / "c.yaml", edits)
    return tmp_path


def sends_in(monkeypatch, method, name, number):
    """A signal in the call of a method with that number."""
    original = getattr(RefineModule, method)
    calls = []

    def send(self, *words, **options):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), getattr(signal, name))
        return original(self, *words, **options)

    monkeypatch.setattr(RefineModule, method, send)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_ends_the_command_with_its_code(workplace, monkeypatch, name):
    sends_in(monkeypatch, "training_step", name, 2)
    outcome = run("fit", "--config", "c.yaml", "--trainer.logger.init_args.version", "first")
    assert outcome.code == CODES[name]
    *_, line = outcome.stderr.splitlines()
    called = "Ctrl-C" if name == "SIGINT" else name
    last = "runs/c/first/checkpoints/last.ckpt"
    command = f"refine-pl fit --config c.yaml --ckpt_path {last}"
    assert line == f"interrupted by {called}; the last checkpoint is {last}; to go on: {command}"
    assert "Traceback" not in outcome.stderr
    assert torch.load(last, weights_only=True)["refine_pl"]["iteration"] == 2
    if name == "SIGTERM":
        assert run(*shlex.split(command)[1:]).code == 0
        end = torch.load("runs/c/version_0/checkpoints/last.ckpt", weights_only=True)
        assert end["refine_pl"]["iteration"] == 6


def test_without_checkpoints_the_same_command_is_all_that_is_left(workplace, monkeypatch):
    sends_in(monkeypatch, "training_step", "SIGHUP", 2)
    words = ["fit", "--config", "c.yaml", "--trainer.callbacks=[]", "--checkpoint=false"]
    outcome = run(*words)
    assert outcome.code == 129
    assert f"no checkpoint was written; to go on: refine-pl {shlex.join(words)}" in outcome.stderr


def test_every_command_ends_as_it_is_asked_to(monkeypatch, capsys):
    """Wherever it is; here at its very beginning."""
    from refine_pl import cli

    checked = 0
    for command in cli.COMMANDS:
        for name, code in CODES.items():

            def main(*_, name=name):
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(5)
                raise AssertionError("it went on")

            module = SimpleNamespace(main=main)
            monkeypatch.setattr(cli.importlib, "import_module", lambda _, m=module: m)
            before = [signal.getsignal(signum) for signum in SIGNALS]
            assert cli.main([command]) == code
            assert [signal.getsignal(signum) for signum in SIGNALS] == before
            said = capsys.readouterr().err
            assert said == f"interrupted by {'Ctrl-C' if name == 'SIGINT' else name}\n"
            checked += 1
    assert checked == 4 * len(cli.COMMANDS) >= 40


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heeded():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_test_of_borders_finds_a_run_that_leaves_at_once(tmp_path, whole, monkeypatch):
    """The broken case: without the wait the update is not finished."""
    monkeypatch.setattr(interruption.Interruption, "on_train_start", lambda *_: None)
    checkpoint, before, _ = interrupted(tmp_path, Sends("on_train_batch_start", 4))
    assert len(before.values) == 4
    assert torch.load(checkpoint, weights_only=True)["refine_pl"]["iteration"] == 2
