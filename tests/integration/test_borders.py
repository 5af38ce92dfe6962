"""What libraries and the machine raise where settings and files come in: words, and exit code 2."""

import contextlib
import errno
import os
import random
import re

import pytest
import torch
import yaml
from command_line import edited, run, write_config, write_documents

from refine_pl.cli import main
from refine_pl.errors import UserError, deepest_reason
from refine_pl.machine_errors import _WAYS_OUT, machine_error
from refine_pl.parsing import DEEPEST, LARGEST, TextError, parse_json, parse_yaml


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "docs")
    (tmp_path / "a_file").write_text("x")
    return tmp_path


def refusal(*argv):
    """The message of a command that is refused, in one line."""
    outcome = run(*argv)
    assert outcome.code == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    text = " ".join(outcome.stderr.split())  # a long path may begin a line of its own
    return text[text.index("error: ") :]


def refused(edits, *options):
    """The message for the legal configuration with edits, or for another text."""
    text = edits if isinstance(edits, bytes) else yaml.safe_dump(edited(edits)).encode()
    with open("c.yaml", "wb") as file:
        file.write(text)
    return refusal("fit", "--config", "c.yaml", *options)


# Texts ---------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1500))
BAD_YAML = {
    "itself": ("x: &a [*a]\n", "stands inside"),
    "itself in a mapping": ("x: &a {y: {z: *a}}\n", "stands inside"),
    "merged with itself": ("x: &a\n  <<: *a\n", "stands inside"),
    "bomb": (BOMB, "multiply"),
    "chain": (CHAIN, "too deep"),
    "deep list": ("x: " + "[" * 5000, "too deep"),
    "deep mapping": ("x: " + "{a: " * 150 + "1" + "}" * 150, "too deep"),
    "digits": ("x: " + "9" * 5000, "more than 4,300 digits"),
    "date": ("x: 2026-99-99", "month must be in"),
    "tag of a date": ("x: !!timestamp bananas", "cannot be read"),
    "tag of a truth": ("x: !!bool bananas", "cannot be read"),
    "tag of a number": ("x: !!int ''", "cannot be read"),
    "tag of code": ("x: !!python/object/apply:os.getcwd []", "could not determine"),
    "tabs": ("x:\n\ty: 1", "cannot start any token"),
    "two documents": ("x: 1\n---\nx: 1", "expected a single document in the stream, but found"),
    "no end": ("x: [1", "expected ',' or ']'"),
    "control characters": ("x: \x01", "special characters"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_bad_yaml(name):
    text, says = BAD_YAML[name]
    with pytest.raises(TextError, match=re.escape(says)):
        parse_yaml(text)


def test_good_yaml():
    text = "a: &a {b: 1}\nc: {<<: *a, d: [*a, 2026-01-01, null, 1.0e+3, 0x1F]}\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
    assert parse_yaml("x: " + "[" * (DEEPEST - 2) + "]" * (DEEPEST - 2))
    assert len(parse_yaml("[" + "1, " * 2000 + "1]")) == 2001 < LARGEST


def test_random_texts_are_read_or_refused():
    """Pieces of YAML in any order: no error but TextError."""
    pieces = ["&a ", "*a", "<<: ", *"[]{}|>?'~x1%@#\"\\\n\t", ": ", "- ", "  ", "---", ".inf", "0x"]
    tags = ("int", "float", "bool", "null", "set", "omap", "pairs", "binary", "timestamp")
    pieces += [*(f"!!{tag} " for tag in tags), "2026-13-01", "9" * 4400]
    rng = random.Random(3)
    read = 0
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
        with contextlib.suppress(TextError):
            parse_yaml(text)
            read += 1
    assert 300 < read < 2700


@pytest.mark.parametrize("kind", [b"\xff\xfe", b"\x00\x01", bytes(range(256))])
def test_configurations_that_are_not_text(workplace, kind):
    assert re.search("not valid YAML|cannot be read", refused(kind))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"- 1\n", "is a list"),
        (b"bananas", "is a str"),
        (BOMB.encode(), "multiply"),
        (b"model: &a [*a]\n", "stands inside of what it stands for where: c.yaml, line 1"),
        (b"model: !!set {a, b}\n", "model is"),
    ],
)
def test_configurations_that_are_no_mapping(workplace, text, says):
    assert says in refused(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": ' + "9" * 5000 + "}", "more than 4,300 digits"),
        ("[" * 200_000, "too deep"),
        ('{"a":' * 100_000, "too deep"),
        ('{"a": }', "Expecting value at character 7"),
        (b"\xff\xff\xff", "decode"),
    ],
)
def test_bad_json(text, says):
    with pytest.raises(TextError, match=says):
        parse_json(text)


@pytest.mark.parametrize("row", ["9" * 5000, "[" * 100_000 + "]" * 100_000])
@pytest.mark.parametrize("suffix", ["", ', "n": 3'])
def test_rows_that_no_parser_reads(workplace, row, suffix):
    good = "".join(f'{{"text": "{chr(97 + i) * 60}"}}\n' for i in range(9))
    (workplace / "rows.jsonl").write_text(good + f'{{"text": {row}{suffix}}}\n')
    corpus = {"paths": "rows.jsonl"}
    edits = {"data.init_args.corpus.init_args": corpus, "trainer.fast_dev_run": True}
    assert "rows.jsonl, line 10" in refused(edits)
    corpus["on_bad_row"] = "skip"
    outcome = run("fit", "--config", write_config(workplace / "c.yaml", edits))
    assert outcome.code == 0, outcome.stderr


BACKBONE = "model.backbone.init_args"

# Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ({"model": 3}, "model is 3"),
        ({"model": "x"}, "model is 'x'"),
        ({"trainer": []}, "trainer is []"),
        ({"trainer": [None]}, "trainer is [None]"),
        ({"model": None}, "model is null"),
        ({"data": 3}, "data is 3"),
        ({"seed_everything": -5}, "seed_everything is -5"),
        ({"seed_everything": 2**32}, "an integer from 0 to 4294967295"),
        ({"seed_everything": 10**30}, "is an integer of 31 digits where: c.yaml, line"),
        ({"model.seed": 2**63}, "model.seed is an integer of 19 digits"),
        ({"trainer.max_steps": -(10**40)}, "trainer.max_steps is an integer of 41 digits"),
        ({"data.init_args.cache_dir": "a\0b"}, "text without NUL"),
        ({"model.rewards": {True: {"class_path": "ExactMatch"}}}, "True, not a text"),
        ({"model.rewards": {3: {"class_path": "ExactMatch"}}}, "3, not a text"),
        ({"ckpt_path": 3}, "ckpt_path is 3"),
        ({"trainer.accelerator": "tpu"}, "refuses its settings"),
        ({"trainer.accelerator": "bananas"}, "refuses its settings"),
        ({"trainer.devices": 0}, "refuses its settings"),
        ({"trainer.devices": -3}, "refuses its settings"),
        ({"trainer.devices": "x"}, "refuses its settings"),
        ({"trainer.devices": [-1, 2]}, "refuses its settings"),
        ({"trainer.precision": "bananas"}, "trainer.precision is 'bananas'"),
        ({"trainer.strategy": "nonsense"}, "invalid strategy name"),
        ({"trainer.strategy": 3}, "trainer.strategy is 3"),
        ({"model.backbone.init_args.hidden_size": 10**6}, "GiB of memory"),
        ({"model.backbone.init_args.hidden_size": 10**18}, "out of range"),
        ({f"{BACKBONE}.vocab_size": 2**24, f"{BACKBONE}.hidden_size": 2**12}, "GiB of memory"),
        ({"model.backbone.init_args.num_hidden_layers": 10**12}, "out of range"),
    ],
)
def test_values_that_libraries_stumble_over(workplace, edits, says):
    assert says in refused(edits)


def test_the_check_of_memory_draws_no_random_numbers():
    from refine_pl.backbones.options import StackOptions
    from refine_pl.backbones.stack import Block, _check_memory

    state = torch.get_rng_state()
    options = StackOptions(hidden_size=8)
    _check_memory(options, lambda _: Block(torch.nn.Linear(8, 8), options))
    assert torch.equal(state, torch.get_rng_state())


def test_a_single_callback_needs_no_list(workplace):
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    edits = {"trainer.callbacks": callback, "trainer.limit_train_batches": 1}
    assert run("fit", "--config", write_config(workplace / "c.yaml", edits)).code == 0


# Data sets and tokenizers --------------------------------------------------------------------


def corpus(name):
    part = {"class_path": "refine_pl.data.HubDataset", "init_args": {"name": name}}
    return {"data.init_args.corpus": part}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"set.py": "import datasets"}, "scripts are no longer supported"),
        ({}, "doesn't contain any data files"),
        ({"a.jsonl": ""}, "no rows"),
        ({"a.jsonl": '{"text": "a"}\n', "b.jsonl": '{"x": 3}\n'}, "column names don't match"),
        ({"a.jsonl": '{"text":\n'}, "set/a.jsonl"),
        ({"a.parquet": "PAR1 nothing"}, "Parquet magic bytes not found"),
        ({"a.csv": '"a\n'}, "set"),
    ],
)
def test_data_sets_that_cannot_be_made(workplace, files, says):
    (workplace / "set").mkdir()
    for name, content in files.items():
        (workplace / "set" / name).write_text(content)
    message = refused(corpus("set"))
    assert says in message
    if "b.jsonl" in files:
        assert "set/b.jsonl" in message


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/set", "../x/y"])
def test_folders_that_are_not_there(workplace, name):
    assert f"the dataset {name!r} cannot be loaded: there is no such folder" in refused(
        corpus(name)
    )
    part = {"class_path": "refine_pl.data.HubTokenizer", "init_args": {"name": name}}
    message = refused({"data.init_args.tokenizer": part})
    assert f"the tokenizer {name!r} cannot be loaded: there is no such folder" in message


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"model": {"type": "BPE"}}', "\x00"])
def test_broken_tokenizers(workplace, content):
    (workplace / "tokenizer.json").write_text(content)
    (workplace / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    part = {"class_path": "refine_pl.data.HubTokenizer", "init_args": {"name": str(workplace)}}
    assert "cannot be loaded" in refused({"data.init_args.tokenizer": part})


# The machine ---------------------------------------------------------------------------------

LOGGER = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "a_file"}}


@pytest.mark.parametrize(
    "edits",
    [
        {"trainer.logger": LOGGER},
        {
            "trainer.logger.class_path": "TensorBoardLogger",
            "trainer.logger.init_args.save_dir": "/proc/x",
        },
        {"data.init_args.cache_dir": "a_file"},
        {"data.init_args.cache_dir": "/proc/x"},
        {"trainer.callbacks.0.init_args.dirpath": "a_file/x"},
        {"trainer.callbacks.0.init_args.dirpath": "/proc/x"},
        {"trainer.default_root_dir": "a_file", "trainer.logger": True},
    ],
)
def test_folders_that_cannot_be(workplace, edits):
    assert re.search(r"(Not a directory|No such file or directory|File exists)", refused(edits))


def test_a_gpu_that_is_not_there(workplace, monkeypatch):
    for name in ("CUDAAccelerator", "MPSAccelerator"):
        monkeypatch.setattr(f"lightning.pytorch.accelerators.{name}.is_available", lambda: False)
    assert "No supported gpu backend found" in refused({"trainer.accelerator": "gpu"})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_disks_that_refuse(workplace, monkeypatch, number):
    """As the disk of the run's folder would: root may write anywhere, so it is only said to be."""

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), "runs/c/config.yaml")

    monkeypatch.setattr("refine_pl.commands.save_config.replace_file", refuse)
    assert f"runs/c/config.yaml: {os.strerror(number)}" in refused({})


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4000000000000 bytes. Error code 12"
        ),
    ],
)
def test_too_little_memory(error):
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = error
    for given in (error, wrapped):
        assert str(machine_error(given)).startswith("out of memory")


def test_faults_of_the_program_are_not_the_machines():
    faults = [ValueError("x"), TypeError(), KeyError("x"), RuntimeError("shapes do not fit")]
    faults += [
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        OSError("no number"),
        OSError(),
    ]
    assert not any(map(machine_error, faults))
    assert all(machine_error(OSError(n, os.strerror(n), "x")) for n in _WAYS_OUT)
    assert len(_WAYS_OUT) >= 14


def test_a_fault_of_the_program_says_how_to_report_it(monkeypatch):
    def fail(argv):
        raise AttributeError("a bug")

    monkeypatch.setattr("refine_pl.cli._run", fail)
    with pytest.raises(AttributeError, match="a bug") as caught:
        main(["fit"])
    assert "Please report it" in "".join(caught.value.__notes__)


def test_the_deepest_reason():
    inner = UserError("column x\nis not there")
    middle, outer = RuntimeError(), ValueError("cannot make the set:")
    outer.__cause__, middle.__cause__ = middle, inner
    assert deepest_reason(outer) == "cannot make the set: column x is not there"
    assert deepest_reason(middle) == "RuntimeError: column x is not there"
    assert deepest_reason(StopIteration()) == "StopIteration"
    assert len(deepest_reason(ValueError("x" * 9999))) < 410
