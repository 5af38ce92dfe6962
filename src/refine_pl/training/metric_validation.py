"""The scalars of a validation, in the order in which they are shown; see ``metric_table.py``."""

from __future__ import annotations

from refine_pl.training.metric import Metric, share

VALIDATION = (
    Metric(
        "val/ntp_loss",
        "next-token loss",
        "next-token cross-entropy of held-out documents",
        "nats per token",
        closing=True,
        lower_is_better=True,
    ),
    share(
        "val/accuracy",
        "accuracy, most likely token",
        "share of next tokens that are the most likely one",
        closing=True,
    ),
    share(
        "val/sampled_accuracy",
        "accuracy of a sample",
        "share that a sample would hit: mean probability of the true token",
    ),
    share(
        "val/expected_match",
        "exact match, expected",
        "probability of the true tokens along the model's own rollouts: what `val/exact_match` is "
        "on average over draws, with less chance in it",
        closing=True,
    ),
    share(
        "val/expected_match_<name>",
        "exact match, expected, first <name> tokens",
        "the same over the first tokens of rollouts alone (`model.validation.match_lengths`)",
        closing=True,
    ),
    share(
        "val/exact_match",
        "exact match of rollout tokens",
        "share of rollout tokens that equal the true ones, whatever the rewards are",
        closing=True,
    ),
    Metric(
        "val/greedy_run",
        "true tokens in a row, greedy",
        "tokens of the true continuation that greedy decoding gives before its first other one, "
        "at most `model.validation.rollout_length`",
        form="{:.3f}",
        closing=True,
    ),
    Metric(
        "val/similarity",
        "similarity, frozen model",
        "embedding similarity of rollouts and true text in the hidden states of a frozen copy: "
        "the model as it was when the stage began",
        closing=True,
    ),
    Metric(
        "val/sft_loss",
        "loss of the answers",
        "cross-entropy of the answers of held-out rows",
        "nats per answer token",
        closing=True,
        lower_is_better=True,
    ),
    share(
        "val/answer_accuracy",
        "most likely answer tokens",
        "share of these tokens that are the most likely one, given the true ones before",
        closing=True,
    ),
    share(
        "val/score",
        "score of own answers",
        "score of the model's own answers to these rows, by the rules of their tasks",
        closing=True,
    ),
    Metric(
        "val/reward",
        "reward of rollouts",
        "weighted sum of the rewards of rollouts from held-out documents; those that read hidden "
        "states read the frozen copy's",
        closing=True,
    ),
    Metric(
        "val/reward_<name>",
        "one reward, before its weight",
        "one reward of these rollouts, before its weight",
        closing=True,
    ),
)
