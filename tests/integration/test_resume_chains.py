"""A run that is resumed and then resumed again is the run that was not, wherever it stopped."""

import pytest
import torch
from runs import RowsData, assert_same_parameters, backbone, every_batch, module, train

from refine_pl.callbacks import RandomState
from refine_pl.training import Schedule, Stage, resuming
from refine_pl.training import module as training_module

EPOCH, TOTAL = 3, 8  # batches


class Run:
    """Runs of the same model on the same data, each with a folder of its own."""

    def __init__(self, folder, scheduled):
        self.folder = folder
        self.scheduled = scheduled

    def __call__(self, name, checkpoint=None, saves=True):
        model = module(backbone(num_hidden_layers=1), microbatch_size=2)
        callbacks = [RandomState(), *([every_batch(self.folder / name)] if saves else [])]
        if self.scheduled:  # stages that end in an epoch, and with one
            stages = {"a": Stage(2, policy_weight=0.0), "b": Stage(4), "c": Stage(TOTAL - 6)}
            callbacks.append(Schedule(stages))
        curve = train(
            model,
            RowsData(),
            TOTAL,
            callbacks,
            checkpoint,
            enable_checkpointing=saves,
            limit_val_batches=1.0 if self.scheduled else 0,
        )
        return model, curve["train/loss"]

    def checkpoint(self, name, iteration):
        return self.folder / name / f"step={2 * iteration}.ckpt"


def differences(run, furthest=TOTAL):
    """The chains of two resumes that do not end where the whole run does; how many were tried.

    Args:
        run: trains.
        furthest: the most batches between the two.
    """
    whole, losses = run("whole")
    found, tried = [], 0
    for first in range(1, 2 * EPOCH + 1):
        model, rest = run(f"{first}", run.checkpoint("whole", first))
        assert rest == losses[first:]
        for second in range(first + 1, min(first + furthest + 1, TOTAL)):
            model, rest = run("last", run.checkpoint(f"{first}", second), saves=False)
            tried += 1
            try:
                assert rest == losses[second:]
                assert_same_parameters(model, whole, rtol=0, atol=0)
            except AssertionError:
                found.append((first, second))
    return found, tried


@pytest.mark.slow
@pytest.mark.parametrize("scheduled", [False, True], ids=["epochs alone", "with stages"])
def test_two_resumes_in_a_row_are_exact(tmp_path, scheduled):
    found, tried = differences(Run(tmp_path, scheduled))
    assert found == []
    assert tried == 21


@pytest.mark.slow
def test_lightning_alone_forgets_where_it_was(tmp_path, monkeypatch):
    """The broken case: without the mend the second resume reads other documents."""
    monkeypatch.setattr(training_module, "begin_next_epoch", lambda trainer: None)
    found, tried = differences(Run(tmp_path, False), furthest=1)
    assert {first for first, _ in found} == {EPOCH, 2 * EPOCH}
    assert tried == 6


def test_a_run_that_does_not_resume_is_left_alone():
    seen = []
    model = module()
    model.on_train_epoch_start = lambda: seen.append(model.iteration)
    train(model, iterations=2 * EPOCH)
    assert seen == [0, EPOCH]
    assert resuming.begin_next_epoch is training_module.begin_next_epoch
    assert torch.is_grad_enabled()
