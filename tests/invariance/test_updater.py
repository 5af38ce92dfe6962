"""The engine alone makes the updates that a run makes, and needs no Lightning for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import RowsData, assert_same_parameters, module, train, trainer

from refine_pl.training import Counters, Sizes, Updater
from refine_pl.training.sizes import cut

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "per mini-batch": {"rollouts_per": "minibatch"},
    "per batch": {"rollouts_per": "batch"},
    "one step per batch": {"steps": "per_batch"},
    "with a KL": {"kl_weight": 0.1},
    "without rollouts": {"policy_weight": 0.0},
}


class Batches(RowsData):
    """Keeps what the run reads."""

    def __init__(self):
        super().__init__(ragged=True)
        self.seen = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.seen.append(batch)
        return batch


def engine(model):
    """An updater over a module's parts, without its trainer."""
    return Updater(
        model.policy,
        model.refine_step,
        model.make_optimizer(model.policy.parameters()),
        model.sizes,
        seed=model.seed,
        gradient_clip=model.gradient_clip,
        reference=model.reference,
    )


@pytest.mark.parametrize("case", OPTIONS)
def test_a_run_is_the_engine_called_for_each_batch(case):
    data, fitted, alone = Batches(), module(**OPTIONS[case]), module(**OPTIONS[case])
    curve = train(fitted, data, iterations=3)
    if fitted.reference is not None:
        alone.reference = module().policy
    updater = engine(alone)
    losses = []
    for batch in data.seen[:3]:
        updater.refine(batch, alone.own_settings)
        updater.counters.iteration += 1
        losses.append(updater.tally.means(updater.device, lambda values: values)["ntp_loss"])
        updater.tally = type(updater.tally)()
    assert_same_parameters(alone, fitted, rtol=0, atol=0)
    assert losses == pytest.approx(curve["train/ntp_loss"], rel=1e-6)  # logged in float32
    assert updater.counters == fitted.counters
    assert updater.counters.updates == 3 * fitted.sizes.updates(4) > 0


def test_counters_are_kept_and_taken_over():
    counters = Counters(3, 12, 1, 4096)
    other = Counters()
    other.load_state_dict(counters.state_dict())
    assert other == counters
    other.load_state_dict({"updates": 13, "of another version": 1})
    assert other == Counters(3, 13, 1, 4096)


def test_pieces_of_a_batch():
    (batch,) = (b for b in [next(iter(prepared().train_dataloader()))])
    assert [len(piece) for piece in cut(batch, 3)] == [3, 1]
    assert Sizes(2, 1).updates(4) == 2
    assert Sizes(None, 1).updates(4) == 1


def prepared():
    data = RowsData()
    data.trainer = trainer()
    return data


def test_the_engine_imports_without_lightning():
    code = (
        "import sys, refine_pl.training.updater, refine_pl.training.metrics\n"
        "import refine_pl.training.validation\n"
        "print(*[name for name in sys.modules if name.startswith(('lightning', 'transformers'))])"
    )
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == ""


def test_another_gradient_is_noticed():
    """The broken case of the first test: a reward of another weight, one seed, other weights."""
    fitted, other = module(), module(seed=1)
    train(fitted, iterations=1)
    train(other, iterations=1)
    with pytest.raises(AssertionError):
        assert_same_parameters(fitted, other, rtol=0, atol=0)
    assert torch.isfinite(next(iter(fitted.policy.parameters()))).all()
