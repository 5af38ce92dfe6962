"""Schedulers of torch: counted in iterations, resumed exactly, refused where they cannot work."""

import math

import pytest
import torch
from jsonargparse import ArgumentParser
from runs import RowsData, assert_same_parameters, every_batch, module, train
from torch.optim import lr_scheduler

from refine_pl.errors import ConfigError
from refine_pl.training import RefineModule, Schedule, SequentialLR, Stage

LR = 1e-2
LINEAR = {"class_path": "torch.optim.lr_scheduler.LinearLR"}
COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 4}}
WARM_UP = LINEAR | {"init_args": {"start_factor": 0.25, "total_iters": 3}}
BOTH = {
    "class_path": "refine_pl.training.SequentialLR",
    "init_args": {"schedulers": [WARM_UP, COSINE], "milestones": [3]},
}


def warm_up(i):
    return LR * min(1.0, 0.25 + 0.25 * i)


def cosine(i):
    return LR * (1 + math.cos(math.pi * i / 4)) / 2


CASES = {
    "warm-up": (WARM_UP, warm_up),
    "cosine": (COSINE, cosine),
    "one after the other": (BOTH, lambda i: warm_up(i) if i < 3 else cosine(i - 3)),
}


def made(config):
    """What the command line makes of a configuration."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RefineModule, "model", skip={"rewards"})
    backbone = {"class_path": "refine_pl.backbones.DeltaNet"}
    backbone["init_args"] = {"hidden_size": 8, "num_hidden_layers": 1, "num_heads": 1}
    given = {"model": {"backbone": backbone, "lr_scheduler": config}}
    return parser.instantiate(parser.parse_object(given)).model.make_lr_scheduler


@pytest.mark.parametrize("case", CASES)
def test_the_rate_follows_its_schedule_by_iterations(case):
    """Two optimizer steps in each iteration: these are not counted."""
    config, expected = CASES[case]
    curve = train(module(lr_scheduler=made(config)), iterations=6)
    assert curve["optim/lr"] == pytest.approx([expected(i) for i in range(6)])
    assert curve["optim/updates"][-1] == 12


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(case, tmp_path):
    config, _ = CASES[case]
    whole = module(lr_scheduler=made(config))
    curve = train(whole, iterations=6, callbacks=[every_batch(tmp_path)], enable_checkpointing=True)
    for done in (1, 3, 4):
        resumed = module(lr_scheduler=made(config))
        rest = train(resumed, iterations=6, ckpt_path=tmp_path / f"step={2 * done}.ckpt")
        assert rest["optim/lr"] == curve["optim/lr"][done:]
        assert_same_parameters(resumed, whole, rtol=0, atol=0)


def test_a_stage_and_a_scheduler_do_not_both_set_the_rate():
    stages = {"a": Stage(1), "b": Stage(1, ramp={"lr": (1e-3, 1e-4)})}
    model = module(lr_scheduler=made(COSINE))
    with pytest.raises(ConfigError, match=r"so does model.lr_scheduler[\s\S]*schedule.stages.b"):
        train(model, callbacks=[Schedule(stages)])


def test_a_scheduler_that_waits_for_a_metric_is_refused():
    model = module(lr_scheduler=lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ConfigError, match="waits for a metric"):
        train(model)


def test_another_rate_on_resume_is_refused(tmp_path):
    model = module(lr_scheduler=made(COSINE))
    train(model, iterations=1, callbacks=[every_batch(tmp_path)], enable_checkpointing=True)
    other = module(
        lr_scheduler=made(COSINE), optimizer=lambda params: torch.optim.AdamW(params, lr=0.05)
    )
    with pytest.raises(ConfigError, match=r"learning rate 0.05, and the schedule .* from 0.01"):
        train(other, RowsData(), 2, ckpt_path=tmp_path / "step=2.ckpt")


def test_schedulers_of_python_work_too():
    def make(optimizer):
        return SequentialLR(optimizer, [made(WARM_UP), made(COSINE)], [3])

    curve = train(module(lr_scheduler=make), iterations=5)
    assert curve["optim/lr"] == pytest.approx(
        [CASES["one after the other"][1](i) for i in range(5)]
    )
