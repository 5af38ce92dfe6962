"""Post-training: the nested updates, its modes, its objectives."""

import pytest
import torch
from runs import RowsData, assert_same_parameters, every_batch, module, parameters, train, trainer
from task_runs import TaskRowsData, task_batch

from refine_pl.callbacks import TokenBudget
from refine_pl.errors import ConfigError
from refine_pl.objectives import SupervisedAnswers, TaskReward
from refine_pl.objectives.supervised import answer_targets
from refine_pl.training import PostTraining, Schedule, Stage


def post(mode="nested_refine", iterations=2, objective=None, data=None, callbacks=(), **options):
    model = module(**options)
    phase = PostTraining(mode) if objective is None else PostTraining(mode, objective)
    data = data or TaskRowsData()
    curve = train(model, data, iterations, callbacks=[phase, *callbacks], limit_val_batches=1.0)
    return model, curve


def test_the_inner_update_is_on_the_prompts_and_the_outer_one_on_the_answers():
    model, curve = post()
    assert model.counters.updates == 2 * (2 + 1)  # two mini-batches and one step on the answers
    assert model.iteration == 2
    assert len(set(curve["train/sft_loss"])) == 2
    for name in ("train/ntp_loss", "train/policy_loss", "reward/total/mean", "time/rollout_s"):
        assert name in curve.values[0]
    data = TaskRowsData()
    assert curve["run/tokens_seen"][0] > 4 * data.sequence_length


@pytest.mark.parametrize(("mode", "updates"), [("sft", 1), ("nested_sft", 3), ("nested_refine", 3)])
def test_the_modes(mode, updates):
    model, curve = post(mode, iterations=1)
    assert model.counters.updates == updates
    assert ("train/ntp_loss" in curve.values[0]) == (mode != "sft")
    assert ("train/policy_loss" in curve.values[0]) == (mode == "nested_refine")
    assert "train/sft_loss" in curve.values[0]


def test_one_iteration_by_hand():
    """Mini-batch by mini-batch on the prompts, then the mean over the answer tokens."""
    model, _ = post("nested_sft", iterations=1, gradient_clip=1e9)
    other = module(gradient_clip=1e9)
    data = TaskRowsData()
    data.trainer = trainer()
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.AdamW(other.policy.parameters(), lr=1e-2)

    def step(loss):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def logprobs(rows):
        hidden = other.policy(rows.tokens, rows.num_tokens).hidden
        logits = hidden @ other.policy.lm_head.weight.T
        return logits.log_softmax(-1)[:, :-1].gather(-1, rows.tokens[:, 1:, None])[..., 0]

    for start in (0, 2):
        prompts = batch.prompts.narrow(start, start + 2)
        real = torch.arange(1, prompts.tokens.shape[1]) < prompts.num_tokens[:, None]
        step(-logprobs(prompts)[real].mean())
    place = torch.arange(1, batch.answered.tokens.shape[1])
    real = (place >= batch.answer_start[:, None]) & (place < batch.answered.num_tokens[:, None])
    assert real.sum() == 8  # a letter and the end of text, four times
    step(-logprobs(batch.answered)[real].mean())
    assert_same_parameters(model, other, rtol=1e-4, atol=1e-5)


def test_micro_batches_change_nothing():
    one, _ = post(microbatch_size=1)
    two, _ = post(microbatch_size=2)
    assert_same_parameters(one, two, rtol=1e-3, atol=1e-5)


def test_per_batch_takes_one_inner_step():
    model, _ = post("nested_sft", iterations=1, steps="per_batch")
    assert model.counters.updates == 2


def test_answers_are_learned():
    _, curve = post("sft", iterations=40)
    assert curve["train/sft_loss"][-1] < 0.5 * curve["train/sft_loss"][0]
    assert curve["train/answer_accuracy"][-1] > 0.4


def test_answer_targets_are_the_answer_and_nothing_else():
    batch = task_batch(TaskRowsData().training[:3])
    targets = answer_targets(batch)
    for row, start, answered in zip(
        targets, batch.answer_start.tolist(), batch.answered.tokens.tolist(), strict=True
    ):
        assert row[row >= 0].tolist() == answered[start : start + 2]
        assert row[: start - 1].max() == -1


def test_validation_answers_the_rows(capsys):
    model, _ = post("sft", iterations=3)
    (result,) = trainer(limit_val_batches=1.0).validate(
        model, datamodule=TaskRowsData(), verbose=False
    )
    assert set(result) == {"val/sft_loss", "val/answer_accuracy", "val/score"}
    assert 0 <= result["val/score"] <= 1


def test_resume_is_exact(tmp_path):
    whole, _ = post(iterations=4)
    first = module()
    keep = every_batch(tmp_path, 3)
    options = {"enable_checkpointing": True}
    train(first, TaskRowsData(), 2, callbacks=[PostTraining(), keep], **options)
    second = module()
    checkpoint = tmp_path / "step=6.ckpt"
    train(second, TaskRowsData(), 4, callbacks=[PostTraining()], ckpt_path=checkpoint)
    assert_same_parameters(second, whole, rtol=0, atol=0)
    assert second.tokens_seen == whole.tokens_seen


def test_data_that_no_phase_reads_are_refused():
    with pytest.raises(ConfigError, match="rows with prompts and answers, and no phase is given"):
        train(module(), TaskRowsData(), 1)
    with pytest.raises(ConfigError, match="sequences of text"):
        train(module(), RowsData(), 1, callbacks=[PostTraining()])


def test_a_schedule_gives_the_inner_update_its_settings():
    """Whatever the order of the callbacks."""
    stages = {"first": Stage(1, policy_weight=0.0), "second": Stage(1)}
    curves = []
    for order in (1, -1):
        callbacks = [PostTraining(), Schedule(stages, validate=False)][::order]
        curves.append(train(module(), TaskRowsData(), None, callbacks=callbacks))
    for curve in curves:
        assert "train/policy_loss" not in curve.values[0]
        assert "train/policy_loss" in curve.values[1]
    assert curves[0]["train/sft_loss"] == curves[1]["train/sft_loss"]


def test_checkpoints_must_fall_on_batches(tmp_path):
    with pytest.raises(ConfigError, match="a batch makes 3 of them"):
        train(
            module(),
            TaskRowsData(),
            1,
            callbacks=[PostTraining(), every_batch(tmp_path, 2)],
            enable_checkpointing=True,
        )


# GRPO on answers ----------------------------------------------------------------------------------


def test_task_reward_samples_scores_and_reinforces():
    objective = TaskReward(answers_per_prompt=16)
    model, curve = post("sft", 3, objective=objective)
    assert model.counters.updates == 3
    for name in ("answer/score", "train/answer_policy_loss", "answer/zero_spread_groups"):
        assert len(curve[name]) == 3
    assert curve["answer/ratio"] == pytest.approx([1, 1, 1], abs=1e-4)  # drawn just before


def test_its_update_reads_sampled_answers_as_they_were_drawn():
    from refine_pl.randomness import RowRandom

    model = module()
    model.policy.double()
    batch = task_batch(TaskRowsData().training[:3])
    objective = TaskReward(answers_per_prompt=4, budget=7)
    prepared = objective.prepare(
        model.policy, batch, TaskRowsData().tokenizer, RowRandom(0, 0, batch.prompts.rows)
    )
    assert prepared.tokens.shape[:3] == (3, 1, 4)
    assert prepared.loss_mask.any(-1).all()
    # By reading every prompt with every answer from the start:
    for b in range(3):
        prompt = batch.prompts.tokens[b, : batch.prompts.num_tokens[b]]
        for n in range(4):
            answer = prepared.tokens[b, 0, n][prepared.loss_mask[b, 0, n]]
            hidden = model.policy(torch.cat([prompt, answer])[None]).hidden[0]
            logits = hidden @ model.policy.lm_head.weight.T
            expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, answer[:, None])
            drawn = prepared.old_logprobs[b, 0, n][prepared.loss_mask[b, 0, n]]
            torch.testing.assert_close(drawn.double(), expected[:, 0], rtol=1e-5, atol=1e-5)
    made = objective.loss(model.policy, prepared)
    log = made.sums
    assert float(log["answer/ratio"][0] / log["answer/ratio"][1]) == pytest.approx(1, abs=1e-5)
    assert made.total.requires_grad


def test_better_answers_become_likelier():
    """A rule that likes one letter: its share among sampled answers rises."""
    data = TaskRowsData()
    data.training = [row._replace(answers=("e",), max_gen_tokens=1) for row in data.training]
    objective = TaskReward(answers_per_prompt=64)
    _, curve = post("sft", 40, objective=objective, data=data)
    scores = curve["answer/score"]
    assert sum(scores[-5:]) > 3 * sum(scores[:5]) + 0.1


def test_one_answer_has_nothing_to_be_compared_with():
    with pytest.raises(ConfigError, match="2 or more"):
        TaskReward(answers_per_prompt=1)


def test_rows_without_answers_cannot_be_trained_on():
    from dataclasses import replace

    from refine_pl.errors import DataError

    batch = replace(task_batch(TaskRowsData().training[:1]), answered=None, answer_start=None)
    with pytest.raises(DataError, match="without answers to train on"):
        SupervisedAnswers().prepare(module().policy, batch, None, None)


def test_a_token_budget_ends_the_run(capsys):
    model = module()
    before = parameters(model)
    run = trainer(PostTraining("sft"), TokenBudget(500))
    run.fit(model, datamodule=TaskRowsData())
    assert 500 <= model.tokens_seen < 500 + 4 * 60
    assert any(not torch.equal(before[k], v) for k, v in parameters(model).items())
