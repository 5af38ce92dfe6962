"""RefineModule: what an iteration does, what is logged, and what a checkpoint holds."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from runs import RowsData, assert_same_parameters, backbone, module, parameters, train, trainer

from refine_pl.callbacks import Throughput
from refine_pl.errors import CheckpointError
from refine_pl.losses import ClippedPolicy, ntp_targets
from refine_pl.rewards import EditDistance, EmbeddingSimilarity, ExactMatch, LogLikelihood
from refine_pl.rollouts import Forked
from refine_pl.training import Schedule, Stage
from refine_pl.training.metrics import metrics
from refine_pl.training.module import RefineModule
from refine_pl.training.validation import VALIDATION_SUMS
from refine_pl.training.validation_plan import ValidationPlan


class FewWords(RowsData):
    """Rows that a tiny model soon predicts in part: eight symbols, each step 0 or 1."""

    def __init__(self):
        super().__init__(num_rows=8)
        generator = torch.Generator().manual_seed(1)
        steps = torch.randint(0, 2, (8, 72), generator=generator)
        self.training.rows = list(steps.cumsum(1) % 8)


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_the_policy_loss_alone_moves_the_reward_the_way_it_is_told(weight):
    model = module(
        rewards={"match": ExactMatch(weight=weight)},
        ntp_weight=0.0,
        policy_weight=1.0,
        num_segments=4,
        rollouts_per_position=8,
        minibatch_size=4,
        microbatch_size=4,
        optimizer=lambda params: torch.optim.AdamW(params, lr=3e-3),
    )
    warm_up = Stage(30, ntp_weight=1.0, policy_weight=0.0, lr=1e-2)
    schedule = Schedule({"warm-up": warm_up, "reward only": Stage(40)}, validate=False)
    curve = train(model, FewWords(), iterations=70, callbacks=[schedule])
    match = [values["reward/match/mean"] for values in curve.values[30:]]
    first, last = sum(match[:8]) / 8, sum(match[-8:]) / 8
    assert first > 0.25
    assert last > first + 0.02 if weight > 0 else last < first / 4


class Experiences(Callback):
    def __init__(self):
        self.seen = []

    def on_experience(self, trainer, pl_module, experience):
        self.seen.append((pl_module.iteration, experience))


def test_every_batch_makes_one_step_per_mini_batch():
    model, data = module(), RowsData(batch_size=4)
    run = trainer(iterations=3)
    run.fit(model, datamodule=data)
    assert run.global_step == model.counters.updates == 3 * 2
    assert model.iteration == 3
    assert model.tokens_seen == 3 * 4 * data.sequence_length


def test_rollouts_of_a_batch_are_drawn_before_its_first_step():
    weights = []

    class Spy(Forked):
        def generate(self, policy, *args):
            weights.append(policy.lm_head.weight.detach().clone())
            return super().generate(policy, *args)

    train(module(generator=Spy()), iterations=1)
    assert len(weights) == 3  # the first mini-batch's sequences one by one, the others' together
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    weights.clear()
    train(module(generator=Spy(), rollouts_per="minibatch"), iterations=1)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_ratio_leaves_one_only_after_the_first_mini_batch():
    on_policy = train(module(rollouts_per="minibatch"), iterations=2)
    assert on_policy["policy/ratio"] == pytest.approx([1, 1], abs=1e-5)
    off_policy = train(module(rollouts_per="batch"), iterations=2)
    assert all(abs(ratio - 1) > 1e-5 for ratio in off_policy["policy/ratio"])


def test_the_baseline_draws_nothing_and_is_plain_next_token_training():
    experiences = Experiences()
    model, data = module(policy_weight=0.0), RowsData(batch_size=4, ragged=True)
    curve = train(model, data, iterations=3, callbacks=[experiences])
    assert experiences.seen == []
    assert "reward/total/mean" not in curve.values[-1]

    policy = backbone()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for i, batch in zip(range(3), data.train_dataloader(), strict=False):
        losses = []
        for start in (0, 2):
            half = batch.narrow(start, start + 2)
            hidden = policy(half.tokens, half.num_tokens).hidden
            logits = hidden @ policy.lm_head.weight.T
            targets = ntp_targets(half).flatten()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()) * int((targets >= 0).sum()))
        counted = int((batch.num_tokens - 1).sum())
        assert curve["train/loss"][i] == pytest.approx(sum(losses) / counted, rel=1e-5)
    for name, value in policy.named_parameters():
        torch.testing.assert_close(parameters(model)[name], value.detach(), rtol=1e-3, atol=1e-4)


def test_step_count_of_the_baseline_matches():
    one, other = trainer(iterations=2), trainer(iterations=2)
    one.fit(module(policy_weight=0.0), datamodule=RowsData())
    other.fit(module(), datamodule=RowsData())
    assert one.global_step == other.global_step == 4


class BrokenLoss(ClippedPolicy):
    """Not finite in the updates of the second iteration."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __call__(self, logprobs, old_logprobs, advantages, loss_mask):
        made = super().__call__(logprobs, old_logprobs, advantages, loss_mask)
        self.calls += 1
        return replace(made, total=made.total * math.inf) if 4 < self.calls <= 8 else made


def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted():
    after = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            after.append(parameters(pl_module))

    model = module(policy_loss=BrokenLoss())
    run = trainer(Watch(), iterations=3)
    run.fit(model, datamodule=RowsData())
    assert model.counters.skipped_steps == 2
    assert run.callback_metrics["optim/skipped_steps"] == 2
    assert run.global_step == 6, "skipped steps count, or checkpoints every n steps would drift"
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])
    assert not all(torch.equal(after[1][name], after[2][name]) for name in after[1])
    assert all(value.isfinite().all() for value in after[2].values())


def test_validation_is_the_same_for_any_batch_size_and_without_rollouts_in_training():
    results = []
    for size, micro, weight in [(1, 1, 0.2), (3, 2, 0.2), (6, 6, 0.2), (6, 6, 0.0)]:
        model = module(microbatch_size=micro, policy_weight=weight)
        data = RowsData(validation_batch_size=size)
        (result,) = trainer(limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
        results.append(result)
    of_tasks = {"val/sft_loss", "val/answer_accuracy", "val/score"}
    assert set(results[0]) == {*VALIDATION_SUMS, "val/reward_similarity"} - of_tasks
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


def test_validation_measures_what_it_says():
    model, data = module(rewards={"match": ExactMatch(weight=2.0)}), RowsData()
    (result,) = trainer(limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
    logprobs, hits = [], []
    for tokens in data.validation.rows:
        hidden = model.policy(tokens[None, :-1]).hidden[0]
        logits = (hidden @ model.policy.lm_head.weight.T).detach()
        logprobs.append(logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0])
        hits.append(logits.argmax(-1) == tokens[1:])
    logprob = torch.cat(logprobs)
    assert result["val/ntp_loss"] == pytest.approx(-float(logprob.mean()), rel=1e-5)
    assert result["val/sampled_accuracy"] == pytest.approx(float(logprob.exp().mean()), rel=1e-4)
    assert result["val/accuracy"] == pytest.approx(float(torch.cat(hits).float().mean()))
    assert result["val/reward_match"] == pytest.approx(result["val/exact_match"])
    assert result["val/reward"] == pytest.approx(2 * result["val/exact_match"])


def test_every_logged_name_is_in_the_table():
    rewards = {
        "similarity": EmbeddingSimilarity(),
        "match": ExactMatch(),
        "likelihood": LogLikelihood(),
        "edit": EditDistance(),
    }
    plan = ValidationPlan(match_lengths=[1, 2])
    model = module(rewards=rewards, kl_weight=0.1, validation=plan)
    callbacks = [Throughput(), Schedule({"one": Stage(2)})]
    curve = train(model, callbacks=callbacks, limit_val_batches=1.0)
    names = {name for values in curve.values for name in values}
    logged = [
        metric.name
        for metric in metrics()
        if metric.name not in ("policy/<name>", "answer/<name>", "setting/<name>")
    ]
    expected = {pattern.replace("<name>", name) for pattern in logged for name in rewards}
    lengths = "val/expected_match_"
    expected = {name for name in expected if not name.startswith(lengths)}
    expected |= {f"{lengths}1", f"{lengths}2"}
    answers = {
        name for name in expected if "answer" in name or name.endswith(("sft_loss", "score"))
    }
    assert len(answers) >= 12
    assert names == expected - answers
    assert len(names) >= 44


def test_the_reference_is_the_policy_of_the_start_and_the_kl_grows_from_zero(tmp_path):
    model = module(kl_weight=0.5, rollouts_per="minibatch", minibatch_size=4)
    start = parameters(model)
    curve = train(model, iterations=4)
    assert curve["train/kl"][0] == pytest.approx(0, abs=1e-6)
    assert curve["train/kl"][-1] > 1e-5
    assert model.reference is not None
    for name, value in model.reference.named_parameters():
        assert torch.equal(value, start[name])
        assert not value.requires_grad


def saved(model, folder, iterations=2, **options):
    run = trainer(iterations=iterations, **options)
    run.fit(model, datamodule=RowsData())
    run.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def test_checkpoints_hold_tensors_and_plain_values_only(tmp_path):
    model = module(kl_weight=0.1)
    path = saved(model, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["refine_pl"]["iteration"] == 2
    assert checkpoint["hyper_parameters"] == {
        "pretrained": None,
        "num_segments": 2,
        "rollouts_per_position": 2,
        "rollout_length": 3,
        "ntp_weight": 1.0,
        "policy_weight": 0.2,
        "kl_weight": 0.1,
        "minibatch_size": 2,
        "microbatch_size": 1,
        "draw_batch": "auto",
        "steps": "per_minibatch",
        "rollouts_per": "batch",
        "update": "auto",
        "gradient_clip": 1.0,
        "max_skipped_steps": 20,
        "seed": 0,
    }
    loaded = RefineModule.load_from_checkpoint(path, backbone=backbone(seed=1))
    assert_same_parameters(loaded, model, rtol=0, atol=0)
    assert loaded.iteration == 2
    assert loaded.minibatch_size == 2


def test_weights_of_another_run_are_a_start_that_counts_from_zero(tmp_path):
    path = saved(module(), tmp_path)
    loaded = RefineModule.load_from_checkpoint(path, backbone=backbone(seed=1))
    train(loaded, iterations=1)
    assert loaded.iteration == 1


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    path = saved(module(), tmp_path)
    with pytest.raises(CheckpointError, match=r"missing policy\.model\.layers\.2.*and \d+ more"):
        RefineModule.load_from_checkpoint(path, backbone=backbone(num_hidden_layers=3))
    wider = backbone(hidden_size=32)
    with pytest.raises(CheckpointError, match=r"has shape \[257, 16\], not \[257, 32\]"):
        RefineModule.load_from_checkpoint(path, backbone=wider)


def test_the_kl_can_be_turned_on_and_off_on_resume(tmp_path):
    path = saved(module(), tmp_path)
    on = module(kl_weight=0.1)
    before = torch.load(path, weights_only=True)["state_dict"]
    train(on, iterations=3, ckpt_path=path)
    assert on.reference is not None
    for name, value in on.reference.named_parameters():
        assert torch.equal(value, before[f"policy.{name}"])
    path = saved(module(kl_weight=0.1), tmp_path)
    off = module()
    train(off, iterations=3, ckpt_path=path)
    assert off.reference is None


def test_the_configuration_beats_the_optimizer_settings_of_a_checkpoint(tmp_path):
    path = saved(module(), tmp_path)
    model = module(optimizer=lambda params: torch.optim.AdamW(params, lr=5e-3, weight_decay=0.5))
    curve = train(model, iterations=3, ckpt_path=path)
    assert curve["optim/lr"] == [pytest.approx(5e-3)]
