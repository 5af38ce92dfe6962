"""What a part's constructor raised, in words: whose it is, its settings, and the line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

import refine_kernels
from refine_pl.commands.run_errors import library_refuses, refused
from refine_pl.errors import ConfigError, UserError
from refine_pl.machine_errors import machine_error

_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
_MAKERS = ("jsonargparse", "refine_pl", "refine_kernels")  # they call the constructors
_REFUSALS = (MisconfigurationException, ValueError, ModuleNotFoundError)
_TEXT_SHOWN = 500  # characters


def construction_error(error: Exception, config: Any) -> ConfigError | None:
    """What a user can do about an error that came while the parts of a run were made.

    Args:
        error: as it arrived; jsonargparse wraps what a constructor raises, in layers.
        config: the settings that the parts were made of.

    Returns:
        None if the error says it already, or is a fault of the program.
    """
    root: BaseException = error
    while root.__cause__ is not None and not isinstance(root, UserError):
        root = root.__cause__
    if isinstance(root, UserError) or machine_error(error) is not None:
        return None
    own = _of_the_users_code(error, config)
    if own is not None:
        return own
    return refused(root) if isinstance(root, _REFUSALS) or library_refuses(root) else None


def _of_the_users_code(error: BaseException, config: Any) -> ConfigError | None:
    """The refusal, if code that is not installed was asked to make a part and raised an error."""
    for link in reversed(list(_chain(error))):
        calls = [(f, n) for f, n in traceback.walk_tb(link.__traceback__) if not _is_generated(f)]
        for (caller, _), (frame, _) in pairwise(calls):
            if _root_module(caller) in _MAKERS and _is_of_the_user(frame):
                break
        else:
            continue
        inside = [(f, line) for f, line in calls if _is_of_the_user(f)]
        last, line = inside[-1]
        text = " ".join(str(link).split())[:_TEXT_SHOWN]
        raised = f"{type(link).__name__}{': ' if text else ''}{text}"
        name = _name_of_part(frame)
        keys = [".".join(key) for key in _keys_of(config, name)]
        return ConfigError(
            f"{name} cannot be made: its own code raised {raised}",
            where="; ".join([*keys, f"{last.f_code.co_filename}, line {line}"]),
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_the_user(frame: FrameType) -> bool:
    """Whether its code is neither Python's, nor installed, nor of this project."""
    file = frame.f_code.co_filename
    roots = [Path(sysconfig.get_path(name)) for name in _INSTALLED]
    roots += [Path(__file__).parents[1], *map(Path, refine_kernels.__path__)]
    return not any(Path(file).is_relative_to(root) for root in roots)


def _is_generated(frame: FrameType) -> bool:
    """Whether it has no file, as the constructor of a dataclass."""
    return frame.f_code.co_filename.startswith("<")


def _root_module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _name_of_part(frame: FrameType) -> str:
    """As it is in the settings: of the class whose constructor runs, or of the function."""
    code = frame.f_code
    if code.co_name in ("__init__", "__new__", "__post_init__") and code.co_varnames:
        made = frame.f_locals.get(code.co_varnames[0])
        cls = made if isinstance(made, type) else type(made)
        return f"{cls.__module__}.{cls.__qualname__}"
    return f"{frame.f_globals.get('__name__')}.{code.co_qualname}"


def _keys_of(config: Any, name: str, at: Sequence[str] = ()) -> Iterator[list[str]]:
    """The keys of the settings at which a ``class_path`` names the part."""
    if isinstance(config, Mapping):
        if config.get("class_path") == name:
            yield list(at)
        for key, value in config.items():
            yield from _keys_of(value, name, at if key == "init_args" else [*at, str(key)])
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from _keys_of(value, name, [*at, str(number)])
