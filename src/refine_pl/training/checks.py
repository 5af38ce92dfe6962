"""Checks of a whole run before it starts: settings that are legal alone but not together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.records import RolloutPlan
from refine_pl.selectors import PositionSelector
from refine_pl.task_records import TaskBatch
from refine_pl.training.run_phases import draws_rollouts, updates_per_batch

if TYPE_CHECKING:
    from refine_pl.training.module import RefineModule

SMALL_LR = 1e-4
"""Below it, steps are lost in the rounding of bfloat16 weights."""

SHOWN_MISFITS = 3

_LENGTHS = ("sequence_length", "max_prompt_tokens")  # of data modules, tokens


def check_trainer(trainer: Trainer, module: RefineModule) -> None:
    """Refuse settings of the trainer that would train something else than what they say.

    Raises:
        ConfigError: at the first setting that does not fit.
    """
    for name in module.refine_step.reward.names:
        if name == "total" or "/" in name:
            raise ConfigError(
                f"a reward is named {name!r}",
                where="model.rewards",
                allowed="names without a slash, and not 'total', which the log calls their sum",
                way_out="another name",
            )
    _check_manual_optimization(trainer)
    _check_precision(str(trainer.precision))
    batch_size = getattr(_datamodule(trainer), "batch_size", None)
    if isinstance(batch_size, int):
        processes = trainer.world_size
        check_batch_size(batch_size, module.minibatch_size, module.microbatch_size, processes)
        _check_checkpoints(trainer, updates_per_batch(module, batch_size))


def check_sharding(trainer: Trainer) -> None:
    """Let a sharded run spread the weights over all processes, or refuse what it cannot do.

    Raises:
        ConfigError: another layout of processes, or a run that answers.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return
    processes = trainer.world_size
    sizes = strategy._data_parallel_size, strategy._tensor_parallel_size
    if sizes[0] not in ("auto", processes) or sizes[1] not in ("auto", 1):
        raise ConfigError(
            f"ModelParallelStrategy has data_parallel_size={sizes[0]}, "
            f"tensor_parallel_size={sizes[1]}, and there are {processes} processes",
            where="trainer.strategy.init_args",
            allowed=f"{processes} and 1: weights are sharded, and no layer is split",
            way_out="leave both out",
        )
    # Left out, Lightning would split layers within a machine.
    strategy._data_parallel_size, strategy._tensor_parallel_size = processes, 1
    if trainer.state.fn in (TrainerFn.TESTING, TrainerFn.PREDICTING):
        raise ConfigError(
            "trainer.strategy is ModelParallelStrategy, and sharded weights are for training and "
            "validation only",
            where="trainer.strategy",
            allowed="auto or ddp",
            way_out="`refine-pl export` the checkpoint, and give its folder as model.pretrained",
        )


def check_data(trainer: Trainer, module: RefineModule, stage: str) -> None:
    """Refuse data that the model cannot read, once the data module is set up.

    A text longer than what the model was trained for is no reason to refuse, but to say so.

    Raises:
        ConfigError: if the tokenizer has more tokens than the backbone, or the segments do not fit.
    """
    data = _datamodule(trainer)
    needed, available = getattr(data, "vocab_size", None), module.policy.vocab_size
    if needed is None:
        needed = getattr(getattr(data, "tokenizer", None), "vocab_size", None)
    loaded = module.hparams.get("pretrained") is not None
    if isinstance(needed, int) and needed > available:
        raise ConfigError(
            f"the tokenizer has {needed} tokens, the backbone only {available}",
            where="model.pretrained" if loaded else "model.backbone.init_args.vocab_size",
            allowed=f"{needed} or more",
            way_out="the tokenizer of that model, in data.tokenizer" if loaded else None,
        )
    _note_long_texts(data, module)
    if stage == "fit" and draws_rollouts(module, module.own_settings):
        check_plan(trainer, module, module.own_settings.plan, "model.num_segments")


def _note_long_texts(data: Any, module: RefineModule) -> None:
    config = module.policy.config()
    if "rope_theta" not in config:  # without positions there is nothing to leave
        return
    trained = config["max_position_embeddings"]
    parts = [data, *getattr(data, "sources", {}).values()]
    lengths = [getattr(part, name, None) for part in parts for name in _LENGTHS]
    longest = max((length for length in lengths if isinstance(length, int)), default=0)
    if longest > trained:
        module.print(
            f"note: texts of up to {longest:,} tokens, and the positions of this "
            f"{type(module.policy).__name__} are said to reach {trained:,} "
            "(max_position_embeddings); longer ones are read all the same"
        )


def check_plan(
    trainer: Trainer,
    module: RefineModule,
    plan: RolloutPlan,
    where: str,
    source: str | None = None,
) -> None:
    """Refuse a plan that full-length sequences have too few legal positions for.

    Args:
        trainer: its data module knows the length.
        module: its selector knows the margins.
        plan: what is checked.
        where: the plan came from.
        source: of the data module's, where it has several.

    Raises:
        ConfigError: naming ``where``.
    """
    data = _datamodule(trainer)
    data = data if source is None else data.sources[source]
    length = getattr(data, "sequence_length", None)
    selector = module.refine_step.selector
    if not isinstance(length, int) or not isinstance(selector, PositionSelector):
        return
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
            way_out="fewer segments, longer sequences, or a smaller min_prefix of the selector",
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
            allowed=f"a multiple of {processes}: it counts over all processes",
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


def check_is_read(batch: Any, phases: Sequence[Any]) -> Any:
    """The phase that reads a batch.

    Raises:
        ConfigError: none of them does.
    """
    for phase in phases:
        if phase.reads(batch):
            return phase
    given = " and ".join(type(phase).__name__ for phase in phases) or "none"
    if isinstance(batch, TaskBatch):
        raise ConfigError(
            f"the data are rows with prompts and answers, and the phase is {given}",
            where="trainer.callbacks",
            allowed="PostTraining for such rows",
            way_out="give refine_pl.callbacks.PostTraining, or text: refine_pl.data.TextData",
        )
    raise ConfigError(
        f"the data are sequences of text, and the phase is {given}",
        where="trainer.callbacks",
        allowed="MidTraining for text; PostTraining needs rows with prompts and answers",
        way_out="give refine_pl.callbacks.MidTraining, or rows: refine_pl.data.TaskData",
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


def _check_manual_optimization(trainer: Trainer) -> None:
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}",
            allowed="1: this model accumulates the micro-batches of a mini-batch by itself",
            way_out="set model.minibatch_size and model.microbatch_size",
        )
    if trainer.gradient_clip_val:
        raise ConfigError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}",
            allowed="nothing: this model clips its own gradients",
            way_out=f"model.gradient_clip: {trainer.gradient_clip_val}",
        )
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ConfigError(
            "trainer.strategy is FSDP, which cannot run several backward passes per batch",
            allowed="auto, ddp, or lightning.pytorch.strategies.ModelParallelStrategy",
        )


def _check_precision(precision: str) -> None:
    if precision.startswith("16"):
        raise ConfigError(
            f"trainer.precision is {precision}",
            allowed="32-true, bf16-mixed, 64-true",
            way_out="bf16-mixed: float16 scales the gradients, which are clipped here unscaled",
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


def _check_checkpoints(trainer: Trainer, updates: int | None) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not isinstance(callback, ModelCheckpoint):
            continue
        every = callback._every_n_train_steps
        if every > 0 and updates is None:
            raise ConfigError(
                f"ModelCheckpoint(every_n_train_steps={every}) counts optimizer steps, and the "
                "phases of this run make different numbers of them per batch",
                where="trainer.callbacks",
                way_out="leave it out: PhaseSchedule validates, and so saves, after every phase",
            )
        if every > 0 and updates is not None and every % updates:
            raise ConfigError(
                f"ModelCheckpoint(every_n_train_steps={every}) counts optimizer steps, and a batch "
                f"makes {updates} of them",
                where="trainer.callbacks",
                allowed=f"a multiple of {updates}",
                way_out=f"every_n_train_steps: {every * updates} saves every {every} batches",
            )
        if callback._train_time_interval is not None:
            raise ConfigError(
                "ModelCheckpoint(train_time_interval) never saves under manual optimization",
                where="trainer.callbacks",
                way_out=f"every_n_train_steps: a multiple of {updates or 'the updates per batch'}",
            )


def _datamodule(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)
