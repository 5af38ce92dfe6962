"""Test-time training: what it changes, and that it leaves nothing behind."""

import pytest
import torch
from lightning.pytorch import Callback
from runs import assert_same_parameters, module, parameters, trainer
from task_runs import TaskRowsData, rows

from refine_pl.errors import ConfigError
from refine_pl.training import TestTimeTraining


class Answers(Callback):
    """The answers, and the weights that gave them."""

    def __init__(self):
        self.texts, self.weights = {}, []

    def on_test_batch_end(self, trainer, pl_module, outputs, *_):
        self.texts |= {answer.row.id: answer.text for answer in outputs}

    def on_test_batch_start(self, trainer, pl_module, *_):
        self.weights.append(parameters(pl_module))


def answer(*phases, data=None, model=None, **options):
    model = model or module(**options)
    seen = Answers()
    # The recorder comes last: at the start of a batch it sees the weights that answer.
    run = trainer(*phases, seen, inference_mode=False, limit_test_batches=1.0)
    run.test(model, datamodule=data or TaskRowsData(), verbose=False)
    return model, seen


def test_weights_change_for_the_batch_and_come_back_bit_for_bit():
    start = parameters(module())
    phase = TestTimeTraining()
    model, seen = answer(phase)
    for weights in seen.weights:
        assert any(not torch.equal(weights[name], start[name]) for name in start)
    for name, value in parameters(model).items():
        assert torch.equal(value, start[name])
    assert all(p.grad is None for p in model.policy.parameters())
    assert phase.batches == 3
    assert phase.totals()["updates"] == 3
    assert phase.totals()["ntp_loss"] > 0
    assert phase.totals()["policy_loss"] != 0


def test_never_goes_on_from_batch_to_batch():
    _, fresh = answer(TestTimeTraining(reset="batch"))
    model, kept = answer(TestTimeTraining(reset="never"))
    names = parameters(model)
    assert all(torch.equal(fresh.weights[0][n], kept.weights[0][n]) for n in names)
    assert any(not torch.equal(fresh.weights[1][n], kept.weights[1][n]) for n in names)
    assert any(not torch.equal(kept.weights[2][n], kept.weights[1][n]) for n in names)


def test_a_learning_rate_of_zero_is_no_test_time_training():
    options = {"optimizer": lambda params: torch.optim.AdamW(params, lr=0.0, weight_decay=0.5)}
    start = parameters(module())
    _, plain = answer(**options)
    for reset in ("batch", "never"):
        model, seen = answer(TestTimeTraining(reset=reset), **options)
        assert seen.texts == plain.texts
        assert all(torch.equal(v, start[n]) for w in seen.weights for n, v in w.items())
        assert_same_parameters(model, module(), rtol=0, atol=0)


def test_a_row_alone_depends_on_no_other_row():
    test_rows = rows(4, seed=5, prefix="x")
    weights = []
    for order in (test_rows, test_rows[::-1], test_rows[1:2]):
        data = TaskRowsData(test_batch_size=1, test_rows=order)
        _, seen = answer(TestTimeTraining(), data=data)
        weights.append(seen.weights[order.index(test_rows[1])])
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


def test_sft_draws_nothing():
    phase = TestTimeTraining(mode="sft")
    answer(phase)
    assert set(phase.totals()) >= {"ntp_loss", "optim/grad_norm", "batches"}
    assert "policy_loss" not in phase.totals()


@pytest.mark.parametrize("policy_weight", [0.2, 0.0])
def test_a_kl_term_compares_with_the_weights_before(policy_weight):
    options = {"policy_weight": policy_weight, "minibatch_size": 1}  # the first step has no KL yet
    _, without = answer(TestTimeTraining(), **options)
    phase = TestTimeTraining()
    model, seen = answer(phase, kl_weight=5.0, **options)
    assert phase.totals()["kl"] > 0
    assert any(not torch.equal(seen.weights[0][n], v) for n, v in without.weights[0].items())
    assert model.reference is None
    assert_same_parameters(model, module(), rtol=0, atol=0)


def test_mini_batches_and_the_last_incomplete_batch():
    phase = TestTimeTraining()
    data = TaskRowsData(test_batch_size=4)  # 4 rows, then 1
    answer(phase, data=data)
    assert phase.totals()["updates"] == 2 + 1


def test_an_error_while_answering_leaves_nothing_behind():
    class Fails(Callback):
        def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, *_):
            if batch_idx == 1:
                raise RuntimeError("stop here")

    start = parameters(module())
    model = module()
    with pytest.raises(RuntimeError, match="stop here"):
        answer(TestTimeTraining(), Fails(), model=model)
    for name, value in parameters(model).items():
        assert torch.equal(value, start[name])


def test_predict_too():
    start = parameters(module())
    model, seen = module(), []

    class Look(Callback):
        def on_predict_batch_start(self, trainer, pl_module, *_):
            seen.append(parameters(pl_module))

    run = trainer(TestTimeTraining(), Look(), inference_mode=False)
    answers = run.predict(model, datamodule=TaskRowsData())
    assert sum(len(batch) for batch in answers) == 5
    assert any(not torch.equal(seen[0][name], start[name]) for name in start)
    assert_same_parameters(model, module(), rtol=0, atol=0)


def test_inference_mode_is_refused():
    run = trainer(TestTimeTraining(), limit_test_batches=1.0)
    with pytest.raises(ConfigError, match="test-time training needs gradients"):
        run.test(module(), datamodule=TaskRowsData(), verbose=False)


def test_the_optimizer_begins_anew_for_every_batch():
    """Two equal batches end in equal weights: no moment is left of the first."""
    one = rows(2, seed=9, prefix="same")
    twice = [*one, *one]
    _, seen = answer(TestTimeTraining(), data=TaskRowsData(test_batch_size=2, test_rows=twice))
    assert all(torch.equal(seen.weights[0][n], v) for n, v in seen.weights[1].items())
    _, kept = answer(
        TestTimeTraining(reset="never"), data=TaskRowsData(test_batch_size=2, test_rows=twice)
    )
    assert any(not torch.equal(kept.weights[0][n], v) for n, v in kept.weights[1].items())
