"""What a stage of a schedule may change: sizes, weights, the rate, and settings of parts."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from refine_pl.errors import ConfigError, nearest
from refine_pl.evaluation.answering import Answering
from refine_pl.losses import PolicyLoss
from refine_pl.objectives import AnswerObjective
from refine_pl.records import RolloutPlan
from refine_pl.refine_step import LossWeights

_PARTS = (nn.Module, PolicyLoss, AnswerObjective, Answering)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one iteration."""

    plan: RolloutPlan
    weights: LossWeights
    lr: float | None = None  # None: what the optimizer or its schedule says
    parts: Mapping[str, float] = field(default_factory=dict)  # by path, as in PartSettings

    def without_rollouts(self) -> Settings:
        """The step-matched baseline: the same with next-token training only."""
        return replace(self, weights=replace(self.weights, policy_weight=0.0, kl_weight=0.0))


class PartSettings:
    """The numeric settings of named parts, by path: ``selector.selection_temperature``.

    A setting is a public attribute that is an integer or a float. Parts read theirs at every call,
    so that a value given here takes effect at once.

    Args:
        parts: by name; a mapping stands for several parts, as in ``rewards.match.weight``.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = parts
        self._own: dict[str, float] = {}
        self.remember()

    def remember(self) -> None:
        """Take the values of now as the parts' own."""
        self._own = dict(_numbers(self._parts))

    def own(self) -> dict[str, float]:
        """The parts' own values, whatever has been done to them since :meth:`remember`."""
        return dict(self._own)

    def check(self, path: str, *values: float, where: str, others: Sequence[str] = ()) -> None:
        """Refuse a path that leads to no number, and values that the setting does not allow.

        Args:
            path: of the setting.
            values: that it is to have.
            where: it was asked for.
            others: what else can be set there, for the message.

        Raises:
            ConfigError: with the nearest path, or the rule of the setting.
        """
        found = self._find(path)
        if found is None:
            known = [*others, *sorted(self._own)]
            close = nearest(path, known)
            raise ConfigError(
                f"there is no numeric setting {path!r}",
                where=where,
                allowed=", ".join(known),
                way_out=f"did you mean {close!r}?" if close else None,
            )
        owner, name = found
        rule = _rule(owner, name)
        for value in values:
            try:
                if not math.isfinite(value):
                    raise ValueError("a finite number")
                if rule is not None:
                    rule(value)
            except ValueError as error:
                raise ConfigError(
                    f"{path} is to be {value:g}", where=where, allowed=str(error)
                ) from error

    @contextmanager
    def given(self, values: Mapping[str, float]) -> Iterator[None]:
        """Inside, the parts have these values; integers are rounded."""
        before = []
        try:
            for path, value in values.items():
                found = self._find(path)
                assert found is not None, path
                owner, name = found
                old = getattr(owner, name)
                before.append((owner, name, old))
                setattr(owner, name, round(value) if isinstance(old, int) else value)
            yield
        finally:
            for owner, name, old in reversed(before):
                setattr(owner, name, old)

    def _find(self, path: str) -> tuple[Any, str] | None:
        """The object that has a setting, and the name of its attribute."""
        *steps, name = path.split(".")
        owner: Any = self._parts
        for step in steps:
            owner = owner.get(step) if isinstance(owner, Mapping) else getattr(owner, step, None)
        if owner is self._parts or not _is_number(getattr(owner, name, None)):
            return None
        return owner, name


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(parts: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """All settings of parts and of the parts inside them, by path.

    What else a part keeps (a tokenizer, a table, a network of its own) is not looked into.
    """
    for name, value in parts.items():
        if name.startswith("_"):
            continue
        if _is_number(value) and path:
            yield f"{path}{name}", value
        elif isinstance(value, Mapping) and not path:
            yield from _numbers(value, f"{name}.")
        elif isinstance(value, _PARTS):
            yield from _numbers(vars(value), f"{path}{name}.")


def _rule(owner: Any, name: str) -> Any:
    """The restricted number type of the constructor's argument of that name, if it has one."""
    try:
        hint = typing.get_type_hints(type(owner).__init__).get(name)
    except (NameError, TypeError):  # annotations that only a type checker can read
        return None
    kinds = [hint, *typing.get_args(hint)]
    numbers = (int, float)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, numbers)), None)
