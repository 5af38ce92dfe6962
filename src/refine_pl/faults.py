"""Whose fault it is: parts that users write, and models that are not finite any more.

A part of a user's own may raise anything, also what would end a loop (``StopIteration``) or the
program (``SystemExit``), and return anything. Each call of one is made inside :func:`blame`, which
says whose fault it was. That a model is finite is asked first, so that no part is blamed for it.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from refine_pl.errors import ConfigError, UserError
from refine_pl.records import Positions, Rollouts

T = TypeVar("T")


class StopError(UserError):
    """Something that ends a run in good order: its state can be saved first.

    Attributes:
        everywhere: all processes raise it at the same place.
    """

    everywhere = False


class PartError(StopError):
    """A part of the user's own raised, or returned something that cannot be used."""


class NotFiniteError(StopError):
    """The model, its weights or its gradients are not finite."""


def is_own(part: object) -> bool:
    """Whether a part, or a function, is one of this package."""
    if isinstance(part, partial):
        return all(map(is_own, (part.func, *filter(callable, part.args))))
    module = getattr(part, "__module__", None) or type(part).__module__
    return module.partition(".")[0] == "refine_pl"


def name_of(part: object) -> str:
    """The import path of a part's class, or of a function."""
    named: Any = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"


def fault(
    key: str, part: object, came: str, allowed: str | None = None, label: str | None = None
) -> PartError:
    """The error that says what a part did.

    Args:
        key: of the configuration that names the part.
        part: the part.
        came: what it did: ``returned None``.
        allowed: what it should have done.
        label: what people call the part; the key if left out.
    """
    source = getattr(part, "source", None) or name_of(part)
    return PartError(f"{label or key} {came}", where=f"{key}: {source}", allowed=allowed)


@contextmanager
def blame(key: str, part: object, always: bool = False, label: str | None = None) -> Iterator[None]:
    """Inside, whatever a part of the user's own raises becomes a :class:`PartError`.

    ``KeyboardInterrupt`` does not: it is the user's, whatever was running.

    Args:
        key: of the configuration that names the part.
        part: the part.
        always: also for parts of this package, which otherwise keep their traceback.
        label: as in :func:`fault`.
    """
    try:
        yield
    except StopError:
        raise
    except (Exception, SystemExit) as error:
        if is_own(part) and not always:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, ConfigError) and Path(last).is_relative_to(Path(__file__).parent):
            raise  # the run is set up wrongly, not the part
        if is_own(part) and isinstance(error, UserError):
            raise PartError(
                f"{label or key}: {error.what}",
                where=f"{key}: {error.where}",
                allowed=error.allowed,
                way_out=error.way_out,
            ) from error
        text = " ".join(str(error).split())[:500]
        frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if f.filename[0] != "<"]
        came = f"raised {type(error).__name__}{': ' if text else ''}{text}"
        at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        made = fault(key, part, came, label=label)
        raise PartError(made.what, where=f"{made.where}{at}") from error


def check_is_made(key: str, part: object) -> None:
    """Refuse a module whose class has a constructor that does not call that of its base.

    Raises:
        ConfigError: naming the class.
    """
    if isinstance(part, nn.Module) and "_modules" not in vars(part):
        raise ConfigError(
            f"{key} is a {name_of(part)}, whose __init__ does not call super().__init__()",
            where=key,
            way_out="super().__init__() in the first line of its __init__",
        )


def copied(record: T) -> T:
    """The same record with tensors of its own: what is done to them changes nothing else."""
    if isinstance(record, Tensor):
        return record.clone()  # type: ignore[return-value]
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return record
    values = {f.name: copied(getattr(record, f.name)) for f in dataclasses.fields(record)}
    return dataclasses.replace(record, **values)


# Numbers -------------------------------------------------------------------------------------


def describe_tensor(value: object) -> str:
    """What a part returned, in a few words: ``a tensor of shape [2, 3]``."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
    device = " on the meta device" if value.is_meta else ""
    return f"a {kind}tensor of {value.dtype} and shape {list(value.shape)}{device}"


def is_plain_float(value: object, shape: Iterable[int]) -> bool:
    """Whether it is a dense floating-point tensor of that shape, with values."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and value.is_floating_point()
        and tuple(value.shape) == tuple(shape)
    )


def check_prefill(entropy: Tensor, num_tokens: Tensor) -> None:
    """Refuse a model that computes no finite number for these sequences.

    Args:
        entropy: ``[B, T]`` nats.
        num_tokens: ``[B]``; what comes after them is not read.

    Raises:
        NotFiniteError: it does not.
    """
    real = torch.arange(entropy.shape[1], device=entropy.device) < num_tokens[:, None]
    if not bool((entropy.isfinite() | ~real).all()):
        raise NotFiniteError("the model is not finite: the entropy of its next tokens has NaN")


def check_rollouts(rollouts: object, key: str, part: object, positions: Positions) -> None:
    """Refuse rollouts of another shape than the plan's, and a model that is not finite on them.

    Raises:
        PartError: the generator returned something else.
        NotFiniteError: a number of a valid rollout is not finite.
    """
    if not isinstance(rollouts, Rollouts):
        raise fault(
            key, part, f"returned {describe_tensor(rollouts)}", "refine_pl.records.Rollouts"
        )
    shape = tuple(rollouts.tokens.shape)
    if len(shape) != 4 or shape[:2] != tuple(positions.index.shape):
        raise fault(key, part, f"returned rollouts of shape {list(shape)}", "[B, S, N, L]")
    values = (rollouts.old_logprobs, rollouts.target_logprobs, rollouts.hidden)
    finite = [value.isfinite().flatten(2).all(-1) for value in (*values, rollouts.target_hidden)]
    if not bool((torch.stack(finite).all(0) | ~rollouts.valid).all()):
        raise NotFiniteError("the model is not finite: its rollouts have NaN or infinite numbers")


def check_positions(found: object, key: str, part: object, lengths: Tensor, length: int) -> None:
    """Refuse what a selector of the user's own may have returned.

    Args:
        found: what it returned.
        key: of the configuration.
        part: the selector.
        lengths: ``[B]`` tokens of each row.
        length: of a rollout, tokens.

    Raises:
        PartError: it is not made of positions that rollouts can start from.
    """
    allowed = "Positions(index [B, S] int64, valid [B, S] bool) with B = " + str(len(lengths))
    if not isinstance(found, Positions):
        raise fault(key, part, f"returned {describe_tensor(found)}", allowed)
    for value, dtype in ((found.index, torch.int64), (found.valid, torch.bool)):
        fits = isinstance(value, Tensor) and value.dtype == dtype and value.ndim == 2
        if not fits or value.shape != found.index.shape or len(value) != len(lengths):
            raise fault(key, part, f"returned {describe_tensor(value)}", allowed)
    index, last = found.index, lengths.to(found.index.device)[:, None] - length
    wrong = found.valid & ((index < 1) | (index > last)) | (index < 0)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise fault(
            key,
            part,
            f"returned position {int(index[row, column])} in a row of {int(lengths[row])} tokens",
            f"1 or more, with {length} tokens from there on, where valid; 0 elsewhere",
        )


def checked_advantages(found: Any, key: str, part: object, valid: Tensor, shape: Any) -> Tensor:
    """The advantages ``[B, S, N]`` that an estimator returned.

    Raises:
        PartError: they are something else, or not finite where ``valid [B, S]``.
    """
    allowed = f"a floating-point tensor of shape [B, S, N] = {list(shape)}, finite where valid"
    if not is_plain_float(found, shape):
        raise fault(key, part, f"returned {describe_tensor(found)}", allowed)
    advantages: Tensor = found.detach().to(valid.device, torch.float32)
    advantages = advantages.where(valid.unsqueeze(-1), 0.0)
    bad = int((~advantages.isfinite()).sum())
    if bad:
        raise fault(key, part, f"returned {bad} values that are NaN or infinite", allowed)
    return advantages
