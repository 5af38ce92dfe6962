"""The command ``refine-pl``: finds the subcommand, and says in a few lines what went wrong.

It defines no components and imports none before a subcommand needs them, so that ``--help`` is
quick.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence

from refine_pl.command_table import COMMANDS
from refine_pl.errors import ConfigError, LostProcessError, UserError, did_you_mean
from refine_pl.interrupts import Interrupted, heeded
from refine_pl.launch import is_first_to_say
from refine_pl.machine_errors import machine_error
from refine_pl.recipes import with_paths

_A_FAULT = (
    "This is a fault of the program, or of a class of your own that is named above. Please report "
    "it with this text, the command and the configuration (--print_config shows it)."
)

USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the arguments after the program's name; those of this process if left out.

    Returns:
        The exit code: 0, 2 if something that the user gave cannot be used, 128 and the number of
        the signal that asked the program to stop: 130 after Ctrl-C, 143 after SIGTERM, 141 where
        nobody reads what it prints any more.
    """
    # For a user's own classes; last, so that nothing there hides an installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with heeded():
            code = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()  # here, where a reader that has gone is noticed
            return code
    except KeyboardInterrupt as stop:
        if not isinstance(stop, Interrupted):
            stop = Interrupted(signal.SIGINT, str(stop))
        sys.stderr.write(f"interrupted by {stop.name}{'; ' if str(stop) else ''}{stop}\n")
        return stop.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        user_error = _user_error(error)
        if user_error is None:
            error.add_note(_A_FAULT)
            raise
        if is_first_to_say(of_another=isinstance(user_error, LostProcessError)):
            sys.stderr.write(_wrapped(f"error: {_text(user_error)}"))
        return USER_ERROR


def _nobody_reads() -> bool:
    """Whether the reader of standard output has gone; what is left for it is then dropped."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # or Python says it at its end
    return gone


def _run(argv: list[str]) -> int:
    word = argv[0] if argv else None
    if word in (None, "-h", "--help"):
        (sys.stdout if word else sys.stderr).write(_help())
        return 0 if word else USER_ERROR
    if word == "--version":
        sys.stdout.write(f"refine-pl {_version()}\n")
        return 0
    if word not in COMMANDS:
        after = "options come after the command: refine-pl fit --config FILE"
        raise ConfigError(
            f"refine-pl has no command {word!r}",
            allowed=", ".join(COMMANDS),
            way_out=after
            if word[0] == "-"
            else did_you_mean(word, [*COMMANDS], "refine-pl --help"),
        )
    module, wants_name, _ = COMMANDS[word]
    argv = with_paths(argv)
    code: int = importlib.import_module(module).main(argv if wants_name else argv[1:])
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {line}" for name, (_, _, line) in COMMANDS.items())
    return f"""usage: refine-pl COMMAND [OPTIONS]

ReFINE: next-sequence-prediction training of fast-weight language models.

commands:
{commands}

options:
  --help     this text; refine-pl COMMAND --help lists the options of a command
  --version  the version
"""


def _user_error(error: BaseException) -> UserError | None:
    """The :class:`UserError` that ``error`` is or was raised from, if there is one.

    What the machine refuses (files, disk, memory) is one, whoever raised it.
    """
    current: BaseException | None = error
    while current is not None and not isinstance(current, UserError):
        current = current.__cause__
    return machine_error(error) if current is None else current


def _text(error: UserError) -> str:
    # A data loader's worker sends the error with its traceback in the text.
    text = str(error)
    return text.rpartition(f"{type(error).__name__}: ")[2].strip() if "Traceback" in text else text


def _wrapped(text: str) -> str:
    """Lines that fit the terminal, at most 100 columns, continued under the text of the line."""
    import textwrap

    try:
        columns = min(max(os.get_terminal_size(sys.stderr.fileno()).columns, 40), 100)
    except (OSError, ValueError):  # it is no terminal
        columns = 100
    lines = text.splitlines()
    return "".join(
        textwrap.fill(
            line,
            columns,
            subsequent_indent=" " * 11 if line.startswith("  ") else "  ",
            drop_whitespace=True,
            break_on_hyphens=False,
            break_long_words=False,
        )
        + "\n"
        for line in lines
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("refine-pl")
    except PackageNotFoundError:
        return "(not installed)"
