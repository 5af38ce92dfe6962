"""Validation measures every arm alike: positions, lengths, numbers and judge are its own."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import RowsData, module, train, trainer

from refine_pl.callbacks import RunSummary
from refine_pl.commands.resolved import resolve
from refine_pl.errors import ConfigError
from refine_pl.randomness import RowRandom
from refine_pl.records import Batch, RolloutPlan
from refine_pl.rewards import EmbeddingSimilarity, ExactMatch
from refine_pl.rollouts import Forked, Recompute
from refine_pl.selectors import Entropy, Even, Extremum, Fixed, Random
from refine_pl.training import Schedule, Stage
from refine_pl.training.run_folder import HELD_OUT
from refine_pl.training.validation_plan import ValidationPlan

PLAN = ValidationPlan(Even(8, 8), 4, 3, 6, match_lengths=[1, 4])
OF_REWARDS = "val/reward"


def validate(model, data=None, **options):
    run = trainer(limit_val_batches=1.0, **options)
    (result,) = run.validate(model, datamodule=data or RowsData(), verbose=False)
    return result


def without_rewards(values):
    return {name: value for name, value in values.items() if not name.startswith(OF_REWARDS)}


def test_whatever_an_arm_trains_with_it_is_measured_alike():
    draw = random.Random(5)
    expected = without_rewards(validate(module(validation=PLAN)))
    assert len(expected) == 9
    arms = 12
    for _ in range(arms):
        arm = module(
            selector=draw.choice([Entropy(9, 9), Random(8, 8), Extremum("argmin"), Fixed(9)]),
            generator=draw.choice([Forked(), Recompute()]),
            rewards={"match": ExactMatch(draw.random())},
            num_segments=draw.randint(1, 3),
            rollouts_per_position=draw.randint(1, 4),
            rollout_length=draw.randint(1, 7),
            policy_weight=draw.choice([0.0, 0.2]),
            seed=draw.randint(0, 99),
            validation=PLAN,
        )
        assert without_rewards(validate(arm)) == pytest.approx(expected, rel=1e-6)
    # What the plan says does matter.
    for change in ({"seed": 1}, {"selector": Random(8, 8)}, {"rollout_length": 5}):
        other = validate(module(validation=replace(PLAN, **change)))
        assert other["val/expected_match"] != pytest.approx(expected["val/expected_match"])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_numbers_against_a_slow_reference(temperature):
    """Each prefix read anew, greedy decoding by reading the whole text again for every token."""
    model = module(validation=replace(PLAN, temperature=temperature), policy_weight=0.0)
    data = RowsData()
    train(model, data, iterations=40)
    result = validate(model)
    policy = model.policy

    def logprobs(tokens):
        with torch.no_grad():
            logits = policy.head(policy(tokens[None]).hidden[0], logits=True).logits
        return (logits / temperature).log_softmax(-1)

    runs, first, losses = [], [], []
    for number, tokens in enumerate(data.validation.rows):
        of_text = logprobs(tokens)
        losses.append(-of_text[:-1].gather(1, tokens[1:, None]).mean())
        batch = Batch(tokens[None], torch.tensor([len(tokens)]), (number,))
        entropy = torch.zeros(1, len(tokens))
        where = PLAN.selector.select(entropy, batch.num_tokens, PLAN.rollouts, RowRandom(0, 0, [0]))
        assert where.valid.all()
        for position in where.index[0].tolist():
            first.append(of_text[position - 1, tokens[position]].exp())
            text = tokens[:position]
            while len(text) < position + PLAN.rollout_length:
                text = torch.cat([text, logprobs(text)[-1].argmax()[None]])
            drawn, true = text[position:], tokens[position : position + PLAN.rollout_length]
            runs.append(int((drawn == true).int().cumprod(0).sum()))
    assert result["val/greedy_run"] == pytest.approx(sum(runs) / len(runs))
    assert max(runs) > 0
    assert result["val/expected_match_1"] == pytest.approx(float(torch.stack(first).mean()), 1e-5)
    tokens = torch.tensor([len(row) - 1 for row in data.validation.rows])
    ntp = float((torch.stack(losses) * tokens).sum() / tokens.sum())
    assert result["val/ntp_loss"] == pytest.approx(ntp, 1e-5)


def test_the_expected_match_is_the_mean_of_the_sampled_one():
    model = module()
    plans = [replace(PLAN, rollouts_per_position=16, seed=seed) for seed in range(8)]
    drawn = []
    for plan in plans:
        model.validation = plan
        drawn.append(validate(model))
    sampled = torch.tensor([values["val/exact_match"] for values in drawn])
    expected = torch.tensor([values["val/expected_match"] for values in drawn])
    error = float(sampled.std() / len(plans) ** 0.5)
    assert float(sampled.mean() - expected.mean()) == pytest.approx(0, abs=5 * error)
    assert expected.std() < sampled.std()  # that is what it is for


def test_what_is_kept_of_each_sequence_adds_up(tmp_path):
    model = module(validation=PLAN)
    summary = RunSummary()
    summary._folder = tmp_path
    summary.setup = lambda *_, **__: None
    stages = {"a": Stage(2), "b": Stage(1)}
    curve = train(model, callbacks=[Schedule(stages), summary], limit_val_batches=1.0)
    lines = [json.loads(line) for line in (tmp_path / HELD_OUT).read_text().splitlines()]
    assert [(line["iteration"], line["row"]) for line in lines] == [
        (iteration, row) for iteration in (0, 2, 3) for row in range(6)
    ]
    assert {line["label"] for line in lines} == {"before", "after a", "after b"}
    for iteration, means in curve.validations:
        rows = [line for line in lines if line["iteration"] == iteration]
        for name, weight in (("val/ntp_loss", "num_tokens"), ("val/expected_match", "positions")):
            weights = [row[weight] - (weight == "num_tokens") for row in rows]
            total = sum(row["values"][name] * w for row, w in zip(rows, weights, strict=True))
            assert total / sum(weights) == pytest.approx(means[name], abs=1e-6)
        for row in rows:
            by_token = row["match_by_token"]
            assert sum(by_token) / 6 == pytest.approx(row["values"]["val/expected_match"], abs=1e-6)
            assert len(row["target"]) == 6 == len(by_token)
            assert row["rollout"]
    assert lines[0]["prefix"] == lines[6]["prefix"] != lines[1]["prefix"]


def test_the_yardstick_stays_where_the_stage_began():
    """The frozen copy is the model at the stage's first step; its own states move."""
    plan = Schedule({"a": Stage(3), "b": Stage(4)})
    model = module(validation=PLAN)
    start = {name: value.clone() for name, value in model.policy.state_dict().items()}
    seen = []

    class Look(RunSummary):
        def on_validation_end(self, trainer, pl_module):
            frozen = {n: v.clone() for n, v in pl_module.yardstick.state_dict().items()}
            now = {n: v.clone() for n, v in pl_module.policy.state_dict().items()}
            seen.append((pl_module.iteration, frozen, now))

    data = RowsData()
    curve = train(model, data, 99, [plan, Look()], limit_val_batches=1.0)
    assert [iteration for iteration, *_ in seen] == [0, 3, 7]
    same = [
        all(torch.equal(frozen[name], value) for name, value in weights.items())
        for (_, frozen, _), weights in zip(seen, (start, seen[1][2], seen[1][2]), strict=True)
    ]
    assert same == [True, True, True]
    assert not torch.equal(seen[2][2]["lm_head.weight"], seen[2][1]["lm_head.weight"])
    last = curve.validations[-1][1]
    # Judged by its own states as they are now, the same rollouts look otherwise.
    own = validate(
        module(
            model.policy,
            validation=replace(PLAN, yardstick=False),
            rewards={"similarity": EmbeddingSimilarity()},
        )
    )
    assert "val/similarity" not in own
    assert own["val/exact_match"] == pytest.approx(last["val/exact_match"])
    assert abs(own["val/reward_similarity"] - last["val/similarity"]) > 1e-3
    assert last["val/reward_similarity"] == pytest.approx(last["val/similarity"])
    assert not any(p.requires_grad for p in model.yardstick.parameters())


def test_a_resumed_run_measures_by_the_same_yardstick(tmp_path):
    def stages():
        return Schedule({"a": Stage(2), "b": Stage(4)})

    options = {"limit_val_batches": 1.0, "enable_checkpointing": True}
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    whole = train(module(validation=PLAN), RowsData(), 99, [stages(), keep], **options)
    resumed = 0
    for file in sorted(tmp_path.glob("*.ckpt")):
        if torch.load(file, weights_only=True)["refine_pl"]["iteration"] >= 6:
            continue
        again = train(
            module(validation=PLAN), RowsData(), 99, [stages()], file, limit_val_batches=1.0
        )
        assert again.validations[-1] == whole.validations[-1]
        resumed += 1
    assert resumed >= 3
    # `validate` on its own finds the yardstick in the checkpoint.
    last = max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    run = trainer(limit_val_batches=1.0)
    (found,) = run.validate(module(validation=PLAN), RowsData(), ckpt_path=last, verbose=False)
    assert found == whole.validations[-1][1]
    # A checkpoint of a run without it: the copy is the policy of the checkpoint.
    content = torch.load(last, weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = {k: v for k, v in state.items() if not k.startswith("yardstick.")}
    torch.save(content, tmp_path / "old.ckpt")
    (other,) = run.validate(
        module(validation=PLAN), RowsData(), ckpt_path=tmp_path / "old.ckpt", verbose=False
    )
    assert other["val/exact_match"] == found["val/exact_match"]
    assert other["val/similarity"] != found["val/similarity"]


def test_the_command_line_takes_it_and_keeps_it_apart(tmp_path):
    words = ["fit", "--config", "configs/tiny_mid.yaml"]
    own = resolve(words)["model"]["validation"]
    given = ["--model.validation.rollout_length", "16", "--model.validation.match_lengths", "[5]"]
    given += ["--model.validation.selector", "Fixed", "--model.validation.selector.stride", "64"]
    changed = resolve([*words, *given])["model"]["validation"]
    assert (changed["rollout_length"], changed["match_lengths"]) == (16, [5])
    assert changed["selector"]["init_args"]["stride"] == 64
    overlays = 0
    for overlay in sorted(Path("configs/ablations").rglob("*.yaml")):
        if overlay.stem in ("64", "uniform", "sft_per_batch", "8", "exact_match"):
            assert resolve([*words, "--config", str(overlay)])["model"]["validation"] == own
            overlays += 1
    assert overlays >= 5


def test_what_it_cannot_mean_is_refused():
    with pytest.raises(ConfigError, match="match_lengths has 5"):
        ValidationPlan(rollout_length=5, match_lengths=[5])
    assert ValidationPlan().rollouts == RolloutPlan(16, 4, 5)
