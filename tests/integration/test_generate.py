"""``refine-pl generate``: what is printed, when, for which prompt, and how it ends."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import sys
import threading
import time

import command_line
import evaluations
import hybrids
import pytest
import tiny
import torch
from small_tokenizers import TEMPLATES, byte_level, with_template

from refine_pl import Bytes, load_pretrained, save_pretrained
from refine_pl.backbones import DeltaNet
from refine_pl.backbones.generating import Picking
from refine_pl.cli import main

MODEL = ["--pretrained", "model", "--tokenizer", "Bytes"]
SHORT = ["--max_tokens", "12", "--temperature", "0"]
PROMPT = "once upon a time"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model that never ends a text of its own accord when it is greedy."""
    folder = tmp_path_factory.mktemp("generate")
    policy = tiny.delta_net(vocab_size=257, dtype=torch.float32)
    with torch.no_grad():
        policy.lm_head.weight[256] = 0
    save_pretrained(policy, folder / "model")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", pipe(""))


def pipe(content):
    """Standard input that holds a text, or bytes that are none."""
    content = content if isinstance(content, bytes) else content.encode()
    return io.TextIOWrapper(io.BytesIO(content), "utf-8")


def run(*words, model=MODEL, expect=0):
    outcome = command_line.run("generate", *model, *words)
    assert outcome.code == expect, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome


def run_to(out, *words, model=MODEL):
    """The exit code, and what comes on standard error where standard output is ``out``."""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["generate", *model, *words])
    return code, err.getvalue()


def expected(prompt=PROMPT, max_tokens=12, temperature=0.0, **options):
    policy = load_pretrained("model")
    options |= {"max_tokens": max_tokens, "temperature": temperature}
    return "".join(policy.generate(prompt, Bytes(), **options)) + "\n"


class Terminal(io.StringIO):
    """A terminal, as far as a program can tell."""

    def isatty(self):
        return True


def test_a_prompt_of_the_command_line_or_of_standard_input(monkeypatch):
    assert run(PROMPT, *SHORT).stdout == expected()
    assert run(*SHORT, "--", PROMPT).stdout == expected()
    for words, text in (["-"], PROMPT), (["-"], f"{PROMPT}\n"), ([], f"{PROMPT}\n"):
        monkeypatch.setattr(sys, "stdin", pipe(text))
        outcome = run(*words, *SHORT)
        assert (outcome.stdout, outcome.stderr) == (expected(), "")


@pytest.mark.parametrize("prompt", ["-5 degrees", "--dashes", "a: b", "[1, 2", "null", "{x}", "7"])
def test_a_prompt_is_taken_as_it_is(prompt):
    words = ["--", prompt] if prompt.startswith("--") else [prompt]
    assert run(*SHORT, *words).stdout == expected(prompt)


def test_settings_mean_what_they_mean_in_python():
    options = {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "seed": 3, "max_tokens": 20}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert run(PROMPT, *words).stdout == expected(**options)
    assert run(PROMPT, *words).stdout != run(PROMPT, *words, "--seed", "4").stdout
    with open("generate.yaml", "w") as file:
        json.dump(options, file)
    assert run(PROMPT, "--config", "generate.yaml").stdout == expected(**options)


def test_pieces_are_printed_as_they_come(monkeypatch):
    """Each one is written and flushed before the model is asked for another token."""
    events = []
    forward = DeltaNet.forward

    def counted(self, tokens, **options):
        events.append(tokens.shape[1])
        return forward(self, tokens, **options)

    class Output(io.StringIO):
        def flush(self):
            events.append(self.getvalue())

    monkeypatch.setattr(DeltaNet, "forward", counted)
    monkeypatch.setattr(Picking, "tokens", told(*b"abcdefghijkl"))
    assert run_to(Output(), PROMPT, *SHORT) == (0, "")
    passes = [i for i, event in enumerate(events) if isinstance(event, int)]
    assert [events[i] for i in passes] == [len(PROMPT)] + [1] * 11
    for number, i in enumerate(passes[1:], start=1):
        assert events[i - 1] == "abcdefghijkl"[:number]
    assert events[-1] == "abcdefghijkl\n"


def told(*ids):
    """A way to pick tokens: these ones."""
    rest = iter(ids)
    return lambda *_: torch.tensor([next(rest)])


@pytest.mark.parametrize(("stop", "named"), [(256, None), (7, 7), (9, [7, 9])])
def test_the_end_of_a_text_ends_it(stop, named, tmp_path, monkeypatch):
    """By the tokenizer and by the model's configuration; nothing of it is shown."""
    policy = tiny.delta_net(vocab_size=257, dtype=torch.float32, eos_token_id=named)
    save_pretrained(policy, tmp_path)
    monkeypatch.setattr(Picking, "tokens", told(*b"abc", stop, *b"def"))
    model = ["--pretrained", tmp_path, "--tokenizer", "Bytes"]
    assert run(PROMPT, model=model).stdout == "abc\n"


def test_chat_templates(tmp_path):
    tokenizer = with_template(byte_level(tmp_path / "plain"), TEMPLATES["turns"], tmp_path / "chat")
    policy = tiny.delta_net(vocab_size=tokenizer.vocab_size, dtype=torch.float32)
    save_pretrained(policy, tmp_path / "chatty")
    model = ["--pretrained", tmp_path / "chatty", "--tokenizer", tokenizer.name]
    policy = load_pretrained(str(tmp_path / "chatty"))
    wrapped = f"<s><|turn|>user\n{PROMPT}<|end|>\n<|turn|>assistant\n"
    (end,) = tokenizer.encode("<|end|>")
    for template, text, ends in (("auto", wrapped, [end]), ("none", PROMPT, [])):
        made = policy.generate(text, tokenizer, max_tokens=12, temperature=0, ends=ends)
        outcome = run(PROMPT, *SHORT, "--chat_template", template, model=model)
        assert outcome.stdout == "".join(made) + "\n"
    outcome = run(PROMPT, "--chat_template_kwargs.nothing", "1", model=model, expect=2)
    assert "--chat_template_kwargs" in outcome.stderr


def test_checkpoints_of_runs(tmp_path, monkeypatch):
    """They bring their tokenizer; with what is exported of them they write the same."""
    monkeypatch.chdir(tmp_path)
    checkpoint = evaluations.train(tmp_path)
    found = run(PROMPT, model=["--ckpt_path", checkpoint]).stdout
    assert command_line.run("export", "--ckpt_path", checkpoint, "--out", "exported").code == 0
    assert run(PROMPT, model=["--pretrained", "exported"]).stdout == found
    assert len(found) > 1


def test_longer_than_the_positions_reach_is_said_and_done(tmp_path):
    policy = hybrids.qwen35(torch.float32, vocab_size=257, max_position_embeddings=20)
    save_pretrained(policy, tmp_path / "qwen")
    model = ["--pretrained", tmp_path / "qwen", "--tokenizer", "Bytes"]
    outcome = run(PROMPT, *SHORT, model=model)
    assert "texts of up to 28 tokens" in outcome.stderr
    assert len(outcome.stdout) > 4
    assert run("abcd", *SHORT, model=model).stderr == ""


def test_typed_prompts(monkeypatch):
    """Each line is a prompt; what is written goes to standard output, all else to the other one."""
    monkeypatch.setattr(sys, "stdin", Terminal(f"{PROMPT}\n\n   \n{PROMPT}\n"))
    outcome = run("--max_tokens", "12")
    first, second = (expected(temperature=1.0, seed=seed) for seed in (0, 1))
    assert outcome.stdout == f"> {first}> > > {second}> \n"
    assert "Ctrl-D leaves" in outcome.stderr
    assert first != second


def test_a_terminal_shows_what_is_written_and_does_not_obey_it(monkeypatch):
    text = "a\n\t\x1b[31mé\x07"
    monkeypatch.setattr(Picking, "tokens", told(*text.encode(), 256))
    assert run(PROMPT).stdout == f"{text}\n"
    monkeypatch.setattr(Picking, "tokens", told(*text.encode(), 256))
    _, note = run_to(out := Terminal(), PROMPT)
    assert out.getvalue() == "a\n\t\\x1b[31mé\\x07\n"
    assert "[12 tokens, " in note
    assert "the text has ended]" in note


REFUSED = {
    "no model": ([PROMPT], [], "no model is given"),
    "two models": ([PROMPT, "--ckpt_path", "x"], MODEL, "both --ckpt_path and --pretrained"),
    "no checkpoint": ([PROMPT], ["--ckpt_path", "gone.ckpt"], "gone.ckpt"),
    "no folder": ([PROMPT], ["--pretrained", "./gone"], "gone"),
    "no tokenizer": ([PROMPT], MODEL[:2], "--tokenizer Bytes"),
    "an empty prompt": ([""], MODEL, "the prompt has no token"),
    "nothing on standard input": (["-"], MODEL, "standard input is empty"),
    "two prompts": (["once", "upon"], MODEL, "the second is 'upon'"),
    "two prompts, apart": (["once", "--seed", "1", "--", "upon"], MODEL, "the second is 'upon'"),
    "a temperature below 0": ([PROMPT, "--temperature", "-1"], MODEL, "--temperature"),
    "a temperature that is no number": ([PROMPT, "--temperature", "hot"], MODEL, "temperature"),
    "an endless temperature": ([PROMPT, "--temperature", "inf"], MODEL, "--temperature"),
    "no tokens": ([PROMPT, "--max_tokens", "0"], MODEL, "max_tokens"),
    "nothing to choose from": ([PROMPT, "--top_p", "0"], MODEL, "--top_p"),
    "an option that is not there": ([PROMPT, "--temprature", "1"], MODEL, "temperature"),
    "a device that is not there": ([PROMPT, "--device", "gpu"], MODEL, "device"),
}


@pytest.mark.parametrize(("words", "model", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(words, model, said):
    outcome = run(*words, model=model, expect=2)
    assert said in " ".join(outcome.stderr.split())
    assert outcome.stdout == ""
    assert len(outcome.stderr.splitlines()) <= 8


@pytest.mark.parametrize(
    "content", [b"\xff", b"h\xc3", b"abc\xe2\x82", b"\x80abc", bytes(range(256))]
)
def test_bytes_that_are_not_text(content, monkeypatch):
    """Of standard input, of the command line, and typed; a typed one is not the last."""
    monkeypatch.setattr(sys, "stdin", pipe(content))
    place = next(i for i, byte in enumerate(content) if byte > 127)
    assert f"not UTF-8 at byte {place}\n" in run("-", expect=2).stderr
    prompt = os.fsdecode(content.replace(b"\0", b""))
    assert "the prompt is not text at its character" in run("--", prompt, expect=2).stderr
    line = prompt.replace("\n", "").replace("\r", "")
    monkeypatch.setattr(sys, "stdin", Terminal(f"{line}\n{PROMPT}\n"))
    outcome = run(*SHORT)
    assert outcome.stdout == f"> > {expected(seed=1)}> \n"
    assert "the prompt is not text" in outcome.stderr


def test_a_reader_that_goes_ends_it_quietly():
    """As in ``| head -c 1``: the rest is not wanted, and there is no end to it."""
    reading, writing = os.pipe()
    found = []

    def head():
        with open(reading, "rb", buffering=0) as text:
            found.append(text.read(1))

    reader = threading.Thread(target=head)
    reader.start()
    with open(writing, "w", encoding="utf-8") as out:
        outcome = run_to(out, PROMPT, "--max_tokens", "100000000", "--temperature", "0")
    reader.join()
    assert outcome == (141, "")
    assert len(found[0]) == 1


def test_in_a_terminal():
    """A real one: Ctrl-C stops an answer and then asks again, Ctrl-D leaves."""
    words = ["-m", "refine_pl", "generate", *MODEL, "--temperature", "0"]
    words += ["--max_tokens", "100000000"]
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, *words], os.environ | path)
    screen = Screen(terminal)
    try:
        for _ in range(2):
            screen.until("> ")
            os.write(terminal, b"abc\n")
            screen.until("abc\r\n")
            screen.until("x")  # of the escapes that strange bytes are shown by
            os.write(terminal, b"\x03")
        screen.until("\n> ")
        os.write(terminal, b"\x04")
        screen.until("\r\n")
    except AssertionError:
        os.kill(process, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(process, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Traceback" not in screen.whole


class Screen:
    """What a program has written to a terminal."""

    def __init__(self, terminal):
        self.terminal, self.whole, self.rest = terminal, "", ""

    def until(self, text, seconds=120):
        """Wait for a text, and forget what was before it."""
        end = time.monotonic() + seconds
        while text not in self.rest:
            ready, _, _ = select.select([self.terminal], [], [], end - time.monotonic())
            assert ready, f"no {text!r} after {self.whole!r:.2000}"
            found = os.read(self.terminal, 65536).decode(errors="replace")
            self.rest, self.whole = self.rest + found, (self.whole + found)[-4000:]
        self.rest = self.rest.partition(text)[2]
