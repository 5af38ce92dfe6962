"""A reward that is a plain function."""

from __future__ import annotations

import importlib
import inspect
import os
import reprlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from refine_pl.errors import ConfigError, UserError, check_choice, did_you_mean
from refine_pl.records import Rollouts
from refine_pl.rewards.base import OnError, Reward

Reads = Literal["texts", "records"]

_REFUSED: ContextVar[bool] = ContextVar("_REFUSED", default=False)


@contextmanager
def functions_refused() -> Iterator[None]:
    """Inside, no :class:`FromFunction` can be made: settings of a checkpoint are being used."""
    token = _REFUSED.set(True)
    try:
        yield
    finally:
        _REFUSED.reset(token)


class FromFunction(Reward):
    """R = what a function of yours returns, called without gradients.

    ``reads: texts`` calls ``function(rollouts, targets)`` with two lists of strings, the ``M``
    valid rollouts of a batch and the true continuation of each; it returns ``M`` numbers.
    ``reads: records`` calls ``function(rollouts)`` with :class:`refine_pl.records.Rollouts`; it
    returns a tensor ``[B, S, N]``, as :meth:`Reward.score` does.

    Args:
        function: where it is: ``my_rewards.brackets_close`` for a file ``my_rewards.py`` in the
            folder you start ``refine-pl`` from. A checkpoint never decides it: whoever resumes
            gives it again.
        reads: what it is called with.
        weight: what the reward is multiplied by in the sum; 0 turns it off.
        on_error: as in :class:`Reward`.

    Raises:
        ConfigError: it cannot be imported, or cannot be called with that.
    """

    code_arguments: ClassVar = ("function",)

    def __init__(
        self,
        function: str,
        reads: Reads = "texts",
        weight: float = 1.0,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__(weight, on_error)
        if _REFUSED.get():
            raise ConfigError(
                f"the checkpoint names {function} as a reward function, and would have it called",
                where="FromFunction",
                way_out="if you trust it, give the rewards yourself: "
                f"rewards={{..., FromFunction({function!r})}}",
            )
        check_choice("FromFunction", "reads", reads, get_args(Reads))
        self.function = function
        self.reads = reads
        self._function = _imported(function)
        inputs = ("rollouts", "targets") if reads == "texts" else ("rollouts",)
        try:
            inspect.signature(self._function).bind(*inputs)
        except TypeError as error:
            raise ConfigError(
                f"{function} cannot be called as {function}({', '.join(inputs)}): {error}",
                where="FromFunction",
                allowed="function(rollouts, targets) with reads: texts, "
                "function(rollouts) with reads: records",
            ) from error
        except ValueError:  # written in C, it may not say how it is called
            pass

    @property
    def source(self) -> str:
        """The path of the function."""
        return self.function

    @torch.no_grad()
    def score(self, rollouts: Rollouts) -> Tensor:
        """``[B, S, N]`` float32.

        Raises:
            UserError: a function of texts returned something else than a number for each.
        """
        if self.reads == "records":
            score: Tensor = self._function(rollouts)
            return score
        valid = rollouts.valid
        scores = torch.zeros(rollouts.tokens.shape[:3])
        if valid.any():
            tokens = rollouts.tokens[valid]  # [V, N, L]
            copies = tokens.shape[1]
            targets = self.decode(rollouts.targets[valid])
            texts = self.decode(tokens.flatten(0, 1))
            values = self._function(texts, [text for text in targets for _ in range(copies)])
            scores[valid.cpu()] = self._numbers(values, len(texts)).view(-1, copies)
        return scores

    def _numbers(self, values: Any, count: int) -> Tensor:
        try:
            numbers = torch.as_tensor(values, dtype=torch.float32, device="cpu")
            fits = tuple(numbers.shape) == (count,)
            came = f"{len(values)} numbers" if numbers.ndim == 1 else reprlib.repr(values)
        except (TypeError, ValueError, RuntimeError):
            fits, came = False, reprlib.repr(values)
        if not fits:
            raise UserError(
                f"the reward function returned {came}",
                where=self.source,
                allowed=f"one number for each of the {count} rollouts",
            )
        return numbers


def _imported(path: str) -> Callable[..., Any]:
    """The function at a dotted path."""
    module_name, _, name = path.rpartition(".")

    def refuse(what: str, way_out: str | None = None) -> ConfigError:
        allowed = "the dotted path of a function: my_rewards.brackets_close"
        return ConfigError(what, where="FromFunction", allowed=allowed, way_out=way_out)

    if not module_name or not name:
        raise refuse(f"function is {path!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's file raises
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        what = f"{path} cannot be imported: "
        if missing and f"{module_name}.".startswith(f"{missing}."):
            way_out = f"a file of your own is looked for from the folder {os.getcwd()}"
            raise refuse(f"{what}there is no module {missing}", way_out) from error
        raise refuse(f"{what}{type(error).__name__}: {error}") from error
    function: Any = getattr(module, name, None)
    home = str(getattr(function, "__module__", "")).partition(".")[0]
    if callable(function) and home in sys.stdlib_module_names:
        raise refuse(f"{path} is a function of Python's own library", "name a function of yours")
    if callable(function):
        return function
    functions = [n for n, v in vars(module).items() if inspect.isfunction(v)]
    hint = did_you_mean(name, {n: f"{module_name}.{n}" for n in functions})
    if hasattr(module, name):
        raise refuse(f"{path} is not a function", hint)
    raise refuse(f"{path} cannot be imported: {module_name} has no {name}", hint)
