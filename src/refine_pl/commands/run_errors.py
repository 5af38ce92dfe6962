"""What ends a run, in words: refused settings, lost processes, signals, parts that leave early."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError
from torch.distributed.checkpoint import CheckpointException
from torch.optim import Optimizer

from refine_pl.callbacks.requeue import EndOfJob
from refine_pl.commands.checkpoints import unfit_shards
from refine_pl.errors import ConfigError, LostProcessError, UserError
from refine_pl.interrupts import Interrupted

_LIBRARIES = ("lightning", "torch", "torchmetrics", "tensorboard", "wandb")

# Modules whose ValueErrors speak of the user's settings.
_THEIR_CHECKS = ("lightning.pytorch.", "lightning.fabric.plugins.")


@contextmanager
def explained(ckpt_path: Any, interruption: Callable[[], str]) -> Iterator[None]:
    """Inside, what ends a run is raised as an error that a user can act on.

    Args:
        ckpt_path: where the run goes on.
        interruption: called, says what an interrupted run leaves.

    Raises:
        UserError: something that the user gave cannot be used.
        Interrupted: a signal has come.
    """
    try:
        yield
    except CheckpointException as error:
        raise unfit_shards(ckpt_path, error) from error
    except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
        # Some settings are only used during the run: those of the optimizer and the trainer's.
        *_, (last, _) = traceback.walk_tb(error.__traceback__)
        if (
            isinstance(error, MisconfigurationException)
            or isinstance(_under_construction(error), Optimizer)
            or last.f_globals["__name__"].startswith(_THEIR_CHECKS)
        ):
            raise refused(error) from error
        raise
    except RuntimeError as error:
        if is_of_a_lost_process(error):
            raise _lost(error) from error
        raise
    except SystemExit as stop:
        # Lightning catches an interrupt, shuts down, and leaves with exit code 1.
        cause = stop.__context__
        if isinstance(cause, KeyboardInterrupt):
            signum = cause.signum if isinstance(cause, Interrupted) else signal.SIGINT
            raise Interrupted(signum, interruption()) from None
        if stop.code in (0, None) and not isinstance(stop, EndOfJob):
            raise _left_early(stop) from stop
        raise


def is_of_a_lost_process(error: RuntimeError) -> bool:
    """Whether processes could not exchange values, as torch's backends report it."""
    return isinstance(error, DistError) or "gloo/transport" in str(error)


def _lost(error: RuntimeError) -> LostProcessError:
    return LostProcessError(
        "another process of this run has ended, or cannot be reached",
        where=" ".join(str(error).split("\n")[0].split())[:200],
        way_out="see what that process wrote; if it was killed, whether its memory ran out; then "
        "go on from the last checkpoint with --ckpt_path",
    )


def refused(error: BaseException) -> ConfigError:
    """What a constructor of Lightning or torch said, with the class that said it."""
    made = _under_construction(error)
    owner = "the trainer" if made is None else type(made).__name__
    text = " ".join(str(error).split())[:500]
    return ConfigError(f"{owner} refuses its settings: {text}")


def library_refuses(error: BaseException) -> bool:
    """Whether the constructor of a library's class raised ``error``, and no other code in it."""
    made = _under_construction(error)
    modules = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    roots = {name.partition(".")[0] for name in (type(made).__module__, *modules[-1:])}
    return made is not None and roots <= {*_LIBRARIES}


def _under_construction(error: BaseException) -> object | None:
    """The innermost object whose constructor raised ``error``."""
    made = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "__init__" and not type(owner).__name__.startswith("_"):
            made = owner
    return made


def _left_early(stop: SystemExit) -> UserError:
    """A part of the user's own that leaves as if the run had come to its end."""
    last = traceback.extract_tb(stop.__traceback__)[-1]
    return UserError(
        "the run was ended by sys.exit() before it came to its end",
        where=f"{last.filename}, line {last.lineno}",
        way_out="trainer.should_stop = True ends a run in good order",
    )
