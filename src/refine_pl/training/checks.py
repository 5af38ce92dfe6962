"""Checks of plain values before a run starts: settings that are legal alone but not together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refine_pl.backbones.base import text_part
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.faults import blame, checked_advantages
from refine_pl.records import RolloutPlan
from refine_pl.rollouts import RolloutGenerator
from refine_pl.selectors import PositionSelector
from refine_pl.training.sizes import Sizes

SMALL_LR = 1e-4
"""Below it, steps are lost in the rounding of bfloat16 weights."""

SHOWN_MISFITS = 3


def check_reward_names(names: Iterable[str]) -> None:
    """Refuse names of rewards that the log could not tell from others.

    Raises:
        ConfigError: at the first one.
    """
    for name in names:
        if name == "total" or "/" in name:
            raise ConfigError(
                f"a reward is named {name!r}",
                where="model.rewards",
                allowed="names without a slash, and not 'total', which the log calls their sum",
                way_out="another name",
            )


def check_precision(precision: str) -> None:
    """Refuse float16.

    Raises:
        ConfigError: with what to use instead.
    """
    if precision.startswith("16"):
        raise ConfigError(
            f"trainer.precision is {precision}",
            allowed="32-true, bf16-mixed, 64-true",
            way_out="bf16-mixed: float16 scales the gradients, which are clipped here unscaled",
        )


def check_update(sizes: Sizes, generator: RolloutGenerator, device: torch.device) -> None:
    """Refuse a joined update that the generator has no pass for, and draws of half a micro-batch.

    And what the generator cannot do on the device.

    Raises:
        ConfigError: naming both settings.
    """
    generator.check_device(device)
    if sizes.update == "joined" and not generator.joins:
        raise ConfigError(
            f"model.update is joined, and {type(generator).__name__} reads every prefix again",
            where="model.update",
            allowed="auto or two_pass, with this generator",
            way_out="model.generator: refine_pl.rollouts.Forked",
        )
    if sizes.draw_batch != "auto" and sizes.draw_batch % sizes.microbatch:
        raise ConfigError(
            f"rollouts of {sizes.draw_batch} sequences at once are not those of whole "
            f"micro-batches of {sizes.microbatch}",
            where="model.draw_batch",
            allowed=f"auto, or a multiple of model.microbatch_size ({sizes.microbatch})",
        )


def check_small_lr(precision: str, lr: float) -> None:
    """Refuse to train bfloat16 weights with steps that they cannot represent.

    Raises:
        ConfigError: with both values.
    """
    if precision == "bf16-true" and lr < SMALL_LR:
        raise ConfigError(
            f"trainer.precision is bf16-true and the learning rate {lr:g}: nearly every step would "
            "be rounded away",
            allowed=f"a learning rate of {SMALL_LR:g} or more with bfloat16 weights",
            way_out="trainer.precision: bf16-mixed keeps float32 weights",
        )


def check_vocabulary(needed: object, available: int, pretrained: bool) -> None:
    """Refuse a tokenizer with more tokens than the model has.

    Args:
        needed: one more than the highest id of the tokenizer, if it says so.
        available: tokens of the model.
        pretrained: whether the model was loaded.

    Raises:
        ConfigError: with both numbers.
    """
    if isinstance(needed, int) and needed > available:
        raise ConfigError(
            f"the tokenizer has ids up to {needed - 1}, the backbone only {available} tokens",
            where="model.pretrained" if pretrained else "model.backbone.init_args.vocab_size",
            allowed=f"{needed} or more",
            way_out="the tokenizer of that model, in data.tokenizer" if pretrained else None,
        )


def special_tokens_note(
    tokenizer: str, ids: Mapping[str, int], config: Mapping[str, Any]
) -> str | None:
    """What to say where a model's configuration names other special tokens than the tokenizer.

    Nothing here goes by the model's: they are only written to exported folders, and an end of text
    of a list of several ends an answer too.

    Args:
        tokenizer: what it is called.
        ids: its special tokens, by their names in ``config.json``.
        config: of the model.
    """
    others = []
    for name, token in ids.items():
        named = config.get(name)
        if named is not None and token not in (named if isinstance(named, list) else [named]):
            others.append(f"{name} is {token} by {tokenizer} and {named} by the backbone")
    return f"note: {'; '.join(others)}: the tokenizer's is used" if others else None


def long_text_note(model: str, config: Mapping[str, Any], lengths: Iterable[object]) -> str | None:
    """What to say of texts longer than the model was trained for: no reason to refuse them.

    Args:
        model: its class.
        config: its configuration; a model without rotations has no positions to leave.
        lengths: of the texts, tokens; what is not a number is skipped.
    """
    longest = max((length for length in lengths if isinstance(length, int)), default=0)
    config = text_part(config)
    rope = config.get("rope_parameters", {"rope_theta": None}) or {}
    rotates = "rope_theta" in config or rope.get("rope_theta", 0) is not None
    if not rotates or longest <= config["max_position_embeddings"]:
        return None
    return (
        f"note: texts of up to {longest:,} tokens, and the positions of this {model} are said to "
        f"reach {config['max_position_embeddings']:,} (max_position_embeddings); longer ones are "
        "read all the same"
    )


def check_plan(selector: PositionSelector, length: int, plan: RolloutPlan, where: str) -> None:
    """Refuse a plan that full-length sequences have too few legal positions for.

    Args:
        selector: knows the margins.
        length: of the sequences, tokens.
        plan: what is checked.
        where: the plan came from.

    Raises:
        ConfigError: naming ``where``.
    """
    usable = selector.count(length, plan)
    margins = (
        f"at least {selector.min_prefix} tokens before a position, and "
        f"{max(selector.min_suffix, plan.rollout_length)} from it on"
    )
    if not usable:
        raise ConfigError(
            f"{type(selector).__name__} finds no position in sequences of {length} tokens",
            where="model.selector",
            allowed=margins,
            way_out="other positions, longer sequences, or a smaller min_prefix of the selector",
        )
    if selector.one_per_segment and usable < plan.num_segments:
        raise ConfigError(
            f"{plan.num_segments} segments do not fit sequences of {length} tokens: only {usable} "
            "of them hold a token where a rollout may start",
            where=where,
            allowed=margins,
            way_out="a smaller num_segments (of the model, of the stage that gives one, or of "
            "validation), longer sequences, or a smaller min_prefix of the selector",
        )


def check_teaches(advantage: nn.Module, plan: RolloutPlan, positions: int, where: str) -> None:
    """Refuse groups that can only have one member, by asking the estimator itself.

    A copy of it gets random rewards. One that judges each rollout alone finds some advantage; one
    that compares finds none in groups of one, whatever they are called.

    Args:
        advantage: the estimator.
        plan: how many rollouts.
        positions: of a sequence, at most.
        where: the plan came from.

    Raises:
        ConfigError: every advantage is 0.
    """
    key, shape = "model.advantage", (4, positions, plan.rollouts_per_position)
    valid = torch.ones(shape[:2], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(advantage)
    with torch.no_grad():
        for _ in range(2):
            rewards = torch.rand(shape, generator=generator)
            with blame(key, advantage):
                found = probe.estimate(rewards, valid)  # type: ignore[operator]
            if bool(checked_advantages(found, key, advantage, valid, shape).any()):
                return
    copies = plan.rollouts_per_position
    raise ConfigError(
        f"each rollout would only be compared with itself: rollouts_per_position is {copies} with "
        f"{positions} position{'s' if positions > 1 else ''} in a sequence, and "
        f"{type(advantage).__name__} (group_by: {getattr(advantage, 'group_by', None)}) then finds "
        "no advantage, whatever the rewards",
        where=where,
        allowed="groups of two or more rollouts",
        way_out="rollouts_per_position: 4; or group_by: sequence with num_segments of 2 or more; "
        "or policy_weight: 0 to train without rollouts",
    )


def check_batch_size(
    batch_size: int, minibatch_size: int, microbatch_size: int, processes: int
) -> None:
    """Refuse sizes that do not divide each other.

    Args:
        batch_size: sequences of a batch, over all processes.
        minibatch_size: sequences of an update, over all processes.
        microbatch_size: sequences of a pass, on each process.
        processes: that share each mini-batch.

    Raises:
        ConfigError: naming the two sizes.
    """
    if batch_size % minibatch_size:
        raise ConfigError(
            f"batches of {batch_size} sequences cannot be cut into mini-batches of "
            f"{minibatch_size}",
            where="model.minibatch_size",
            allowed=f"a divisor of the batch size of the data ({batch_size})",
            way_out=f"model.minibatch_size: {batch_size} makes one optimizer step per batch",
        )
    if minibatch_size % processes:
        raise ConfigError(
            f"mini-batches of {minibatch_size} sequences cannot be shared by {processes} processes",
            where="model.minibatch_size",
            allowed=f"a multiple of {processes}: it is the total over all processes",
        )
    local = minibatch_size // processes
    if local % microbatch_size:
        raise ConfigError(
            f"mini-batches of {local} sequences on each process cannot be cut into micro-batches "
            f"of {microbatch_size}",
            where="model.microbatch_size",
            allowed=f"a divisor of {local}: model.minibatch_size {minibatch_size} over "
            f"{processes} process{'es' if processes > 1 else ''}",
        )


def check_state(
    own: Mapping[str, Any], given: Mapping[str, Any], model: str, strict: bool = True
) -> None:
    """Refuse a checkpoint of another architecture.

    Args:
        own: the module's state.
        given: the checkpoint's.
        model: what the module is called in the message.
        strict: whether both must have the same keys.

    Raises:
        CheckpointError: naming the first keys that do not fit.
    """
    misfits = []
    if strict:
        misfits += [f"missing {key}" for key in own if key not in given]
        misfits += [f"unexpected {key}" for key in given if key not in own]
    for key, value in given.items():
        if isinstance(value, Tensor) and key in own and value.shape != own[key].shape:
            misfits.append(f"{key} has shape {list(value.shape)}, not {list(own[key].shape)}")
    if misfits:
        shown, more = misfits[:SHOWN_MISFITS], len(misfits) - SHOWN_MISFITS
        raise CheckpointError(
            f"the checkpoint does not fit this {model}: {'; '.join(shown)}"
            + (f"; and {more} more" if more > 0 else ""),
            allowed="a checkpoint of the same backbone with the same sizes",
            way_out="compare model.backbone with the config.yaml beside the checkpoint",
        )
