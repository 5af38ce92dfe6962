"""``refine-pl generate``: what a model writes after a prompt, as it writes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from refine_pl.backbones.generating import Picking
from refine_pl.chat import Chat, ChatOption, ChatTemplate
from refine_pl.commands.config_errors import explain
from refine_pl.commands.config_sources import read_sources
from refine_pl.commands.loading import Device, Loaded, Precision, check_model, load_model
from refine_pl.errors import ConfigError, UserError
from refine_pl.interrupts import Interrupted
from refine_pl.training.checks import long_text_note

_HELP = """Writes on from PROMPT with a checkpoint of a run or a model in the published layout, and
prints every piece as it comes. With - the prompt is standard input; without a prompt each line that
you type is one."""

_TYPING = "Each line is a prompt of its own. Ctrl-C stops an answer, Ctrl-D leaves.\n"


@dataclass
class GenerateOptions:
    """The model, and how it writes.

    Args:
        ckpt_path: a checkpoint of `refine-pl fit`, a file or a folder.
        pretrained: a folder in the published layout, or a name on the hub.
        tokenizer: folder or name on the hub, or Bytes; the model's own if left out.
        chat_template: auto wraps prompts in the tokenizer's chat template, if it has one.
        chat_template_kwargs: variables of the template, for example enable_thinking.
        max_tokens: the most tokens that are written.
        temperature: that logits are divided by; 0 takes the most likely token.
        top_k: only this number of most likely tokens.
        top_p: only the most likely tokens that together have this probability.
        seed: of the random numbers; the same seed writes the same.
        device: where; auto takes a GPU if there is one.
        precision: auto is 32-true on a CPU and bf16-mixed on a GPU.
    """

    ckpt_path: str | None = None
    pretrained: str | None = None
    tokenizer: str | None = None
    chat_template: ChatTemplate = "auto"
    chat_template_kwargs: dict[str, ChatOption] | None = None
    max_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: float | None = None
    seed: NonNegativeInt = 0
    device: Device = "auto"
    precision: Precision = "auto"

    def picking(self) -> Picking:
        """How tokens are picked.

        Raises:
            ConfigError: a value is out of its range.
        """
        try:
            return Picking(self.max_tokens, self.temperature, self.top_k, self.top_p, self.seed)
        except ConfigError as error:
            raise ConfigError(
                error.what, where=f"--{error.where}", allowed=error.allowed
            ) from error


def main(argv: Sequence[str]) -> int:
    """Write.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    prompt, options = _parse(argv)
    check_model(options)
    options.picking()
    typed = prompt is None and sys.stdin.isatty()
    if not typed and prompt in (None, "-"):
        prompt = _standard_input()
    elif prompt is not None:
        _check_text(prompt)
    loaded = load_model(options)
    chat = Chat.of(
        loaded.tokenizer, options.chat_template, options.chat_template_kwargs, "--chat_template"
    )
    if prompt is not None:
        _write(loaded, chat, prompt, options)
        return 0
    sys.stderr.write(_TYPING)
    for number, line in enumerate(_lines()):
        options.seed += number > 0  # the same prompt again gets another answer
        try:
            _check_text(line)
            _write(loaded, chat, line, options)
        except Interrupted as stop:
            if stop.name != "Ctrl-C":
                raise
        except UserError as error:  # of this line; the next one may be right
            sys.stderr.write(f"error: {error}\n")
    return 0


def _parse(argv: Sequence[str]) -> tuple[str | None, GenerateOptions]:
    parser = ArgumentParser(
        prog="refine-pl generate", description=_HELP, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="options from a file")
    parser.add_argument("prompt", nargs="?", type=str, help="text, or - for standard input")
    parser.add_class_arguments(GenerateOptions)
    prompt, words = _without_prompt(argv)
    try:
        config = parser.parse_args(words)
    except Exception as error:
        raise explain(error, parser, read_sources(words)) from error
    options = {k: v for k, v in config.items() if k not in ("config", "prompt")}
    return prompt, GenerateOptions(**options)


def _without_prompt(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The prompt, which is taken as it is, and the options: each of them has a value.

    Raises:
        ConfigError: there are several prompts.
    """
    argv, taken = _halves(argv)
    before = ["", *argv]
    of_options = [word.startswith("--") or word == "-h" for word in argv]
    values = [word.startswith("--") and "=" not in word for word in before[:-1]]
    prompts = [w for w, o, v in zip(argv, of_options, values, strict=True) if not (o or v)]
    prompts += taken
    if len(prompts) > 1:
        raise ConfigError(
            f"there are {len(prompts)} prompts, the second is {prompts[1]!r}",
            where="command line",
            way_out="one text in quotes; for several prompts: refine-pl predict --prompts FILE",
        )
    words = [w for w, o, v in zip(argv, of_options, values, strict=True) if o or v]
    return next(iter(prompts), None), words


def _halves(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words in front of ``--``, and those after it, which are no options."""
    place = argv.index("--") if "--" in argv else len(argv)
    return [*argv[:place]], [*argv[place + 1 :]]


def _standard_input() -> str:
    """All of it, without the line's end that a shell puts there.

    Raises:
        ConfigError: there is nothing, or it is not text.
    """
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"standard input is not UTF-8 at byte {error.start:,}"
        raise ConfigError(what, where="PROMPT", allowed="UTF-8 text") from error
    if not text:
        raise ConfigError("standard input is empty", where="PROMPT", allowed="the text of a prompt")
    return text.removesuffix("\n")


def _check_text(prompt: str) -> None:
    """Refuse what no encoding of Unicode can hold: bytes that the terminal did not mean as text.

    Raises:
        ConfigError: there are such bytes.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        what = f"the prompt is not text at its character {error.start + 1:,}"
        raise ConfigError(what, where="PROMPT", allowed="UTF-8 text") from error


def _lines() -> Iterator[str]:
    """What a person types, line by line, until the end."""
    import readline  # noqa: F401 - arrow keys work from here on

    while True:
        try:
            line = input("> ")
        except EOFError:
            sys.stdout.write("\n")
            return
        if line.strip():
            yield line


def _write(loaded: Loaded, chat: Chat | None, prompt: str, options: GenerateOptions) -> None:
    """Print what follows a prompt, and to a terminal how long it took."""
    started = time.monotonic()
    show = _visible if sys.stdout.isatty() else str
    ids = loaded.tokenizer.encode(prompt if chat is None else chat.wrap(prompt))
    made = loaded.policy.generate(
        ids,
        loaded.tokenizer,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        ends=() if chat is None else (chat.end,),
    )
    policy, longest = loaded.policy, len(ids) + options.max_tokens
    note = long_text_note(type(policy).__name__, policy.config(), [longest])
    if note is not None:
        sys.stderr.write(f"{note}\n")
    try:
        with loaded.autocast():
            for piece in made:
                sys.stdout.write(show(piece))
                sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
    if sys.stdout.isatty():
        seconds = max(time.monotonic() - started, 1e-9)
        end = "the text has ended" if made.finish == "eos" else "--max_tokens is reached"
        speed = f"{made.num_tokens:,} tokens, {made.num_tokens / seconds:,.1f} tokens/s"
        sys.stderr.write(f"[{speed}; {end}]\n")


def _visible(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1]
        for character in text
    )
