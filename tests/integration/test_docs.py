"""Every block of README, CONTRIBUTING and docs is run or parsed, and every link leads somewhere."""

import importlib
import importlib.util
import inspect
import json
import re
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from command_line import run
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule
from published_questions import hotpotqa, squad
from report_runs import training_run

from refine_pl.backbones import DeltaNet
from refine_pl.cli import COMMANDS
from refine_pl.commands.callback_keys import TRAINING_KEYS
from refine_pl.data import Corpus
from refine_pl.training.metrics import GROUPS
from refine_pl.training.module import RefineModule

ROOT = Path(__file__).parents[2]
RECIPE = "configs/tiny_mid.yaml"
FIT = ["fit", "--config", RECIPE]
TEST = [
    *("test", "--config", "configs/eval/tiny_niah.yaml", "--model.pretrained"),
    *(ROOT / "tests/golden/delta_net_base", "--data.init_args.tokenizer", "refine_pl.data.Bytes"),
]
SECTIONS = {"model", "data", "trainer", "seed_everything", "ckpt_path", "evaluation"}
SECTIONS |= set(TRAINING_KEYS)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "backbones").glob("*.md")),
]
LINKED = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
    *sorted((ROOT / "kernels").rglob("README.md")),
]

# At least this many are there, so that a search that finds nothing is noticed.
MIN_PAGES = 12
MIN_BLOCKS = {"python": 12, "yaml": 8, "bash": 18, "json": 1}
MIN_LINKS = 45

# Tests have no network: small models of the same kind, in folders.
GOLDEN = ROOT / "tests" / "golden"
ON_THE_HUB = {
    "fla-hub/delta_net-1.3B-100B": GOLDEN / "delta_net_base",
    "Qwen/Qwen3.5-0.8B-Base": GOLDEN / "qwen3_5_multimodal",
}

# Commands that are not this project's begin with one of these.
OTHER_COMMANDS = [
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "pip install -e .",
    "tensorboard --logdir",
]


@dataclass
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def file_name(self):
        """The name in its first line, if it is to be saved."""
        found = re.match(r"# (\w+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None

    @property
    def place(self):
        """For messages."""
        return f"{self.page.name}, line {self.line}"


def blocks_of(page, text=None):
    """The fenced blocks of a page, in order."""
    text = page.read_text() if text is None else text
    found, start, language, lines = [], None, "", []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif start is None:
            start, language, lines = number, line[3:].strip(), []
        else:
            found.append(Block(page, start, language, "\n".join(lines) + "\n"))
            start = None
    assert start is None, f"{page.name}, line {start}: the block has no end"
    return found


class Reader:
    """Checks the blocks of one page in their order, in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.names = {"__name__": "page"}
        self.modules = []
        self.checked = Counter()
        (folder / "configs").symlink_to(ROOT / "configs")

    def read_all(self, page, text=None):
        """Check the blocks of a page in their order."""
        for block in blocks_of(page, text):
            self.read(block)

    def read(self, block):
        """Check one block.

        Raises:
            AssertionError: it does not work.
        """
        check = getattr(self, f"_{block.language or 'nothing'}", None)
        assert check is not None, f"{block.place}: unknown language {block.language!r}"
        if block.file_name:
            (self.folder / block.file_name).write_text(block.text)
            self.modules.append(Path(block.file_name).stem)
            importlib.invalidate_caches()
        check(block)
        self.checked[block.language] += 1

    def forget(self):
        """Forget the modules that blocks made."""
        for name in self.modules:
            sys.modules.pop(name, None)

    def _text(self, block):
        """Output: nothing to check."""

    def _json(self, block):
        json.loads(block.text)

    def _python(self, block):
        code = "\n" * block.line + block.text  # so that a traceback has the page's lines
        with torch.random.fork_rng(devices=[]):
            exec(compile(code, str(block.page), "exec"), self.names)

    def _yaml(self, block):
        text = block.text
        for name, folder in ON_THE_HUB.items():
            text = text.replace(name, str(folder))
        values = yaml.safe_load(text)
        assert isinstance(values, dict), f"{block.place}: not a mapping"
        if not set(values) <= SECTIONS:
            assert set(values) <= set(inspect.signature(RefineModule).parameters), block.place
            values = {"model": values}
        fragment = self.folder / "fragment.yaml"
        fragment.write_text(yaml.safe_dump(values, sort_keys=False))
        words = TEST if "evaluation" in values else FIT
        outcome = run(*words, "--config", fragment, "--print_config")
        assert outcome.code == 0, f"{block.place}: {outcome.stderr}"
        instantiate(yaml.safe_load(outcome.stdout))

    def _bash(self, block):
        commands = block.text.replace("\\\n", " ").splitlines()
        for command in commands:
            words = shlex.split(command, comments=True)
            if words:
                self._command(words, block.place)

    def _command(self, words, place):
        if "|" in words:
            first, words = words[0], words[words.index("|") + 1 :]
            assert first == "cat", f"{place}: only cat may stand before a pipe"
        if words[0] == "torchrun":
            words = ["refine-pl", *words[words.index("refine_pl") + 1 :]]
        if words[0] == "refine-pl":
            outcome = self._refine_pl(words[1:])
            assert outcome.code == 0, f"{place}: {' '.join(words)}: {outcome.stderr}"
        elif words[0] == "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            for word in words[1:]:
                assert "=" in word or word in targets, f"{place}: no target {word}"
        else:
            text = " ".join(words)
            assert text.startswith(tuple(OTHER_COMMANDS)), f"{place}: unknown command {text}"

    def _refine_pl(self, words):
        if "--ckpt_path" in words:
            path = self.folder / words[words.index("--ckpt_path") + 1]
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"state_dict": {}, "hyper_parameters": {}}
            content["refine_pl"] = {"tokenizer": {"class_path": "refine_pl.data.Bytes"}}
            if words[0] == "export":
                policy = DeltaNet(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_heads=1)
                content["state_dict"] = {f"policy.{k}": v for k, v in policy.state_dict().items()}
                content["refine_pl"] = {"backbone": policy.config()}
            torch.save({"pytorch-lightning_version": "2.6.6", **content}, path)
        if words[0] == "report":
            folders = [self.folder / w for w in words[1:] if w.startswith("runs/")]
            for folder in (f for f in folders if not f.exists()):
                training_run(folder)
        if words[0] == "prepare":
            squad(self.folder / words[words.index("--squad") + 1])
            hotpotqa(self.folder / words[words.index("--hotpotqa") + 1])
            words = [*words, "--tokenizer", "bytes", "--length", "700", "--rows", "8"]
            words += ["--validation_rows", "2"]
        if words[0] in ("sweep", "compare"):
            words = [words[0], "--dry_run", *words[1:]]
        runs = words[0] in ("fit", "validate", "test", "predict", "bench", "lm-eval", "generate")
        asks = any(w in ("--help", "--print_config") or w.endswith(".help") for w in words)
        return run(*words, *(["--print_config"] if runs and not asks else []))


def instantiate(config):
    """Make the parts of a resolved configuration, whose constructors may refuse it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RefineModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    parser.add_argument("--callbacks", type=list[Callback])
    given = {"model": config["model"], "data": config["data"]}
    arguments = given["data"]["init_args"]
    if "tokenizer" in arguments and arguments["tokenizer"] is None:  # test finds that of the model
        arguments["tokenizer"] = {"class_path": "refine_pl.data.Bytes"}
    keys = [config[key] for key in ("phase", "evaluation") if config.get(key)]
    given["callbacks"] = [*(config["trainer"]["callbacks"] or []), *keys]
    made = parser.instantiate_classes(parser.parse_object(given))
    corpus = getattr(made.data, "corpus", None)
    for member in getattr(corpus, "corpora", {}).values():
        assert isinstance(member, Corpus), member


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    reader = Reader(tmp_path)
    yield reader
    reader.forget()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks(page, reader):
    reader.read_all(page)
    assert reader.checked.total() == len(re.findall(r"^```\w+$", page.read_text(), re.MULTILINE))


def test_enough_blocks_are_checked():
    assert len(PAGES) >= MIN_PAGES
    found = Counter(block.language for page in PAGES for block in blocks_of(page))
    for language, least in MIN_BLOCKS.items():
        assert found[language] >= least, (language, found)


BROKEN = {
    "python that raises": ("```python\nassert 1 == 2\n```\n", "^$"),
    "an import that is gone": (
        "```python\nfrom refine_pl.rewards import Gone\n```\n",
        "cannot import name 'Gone'",
    ),
    "a misspelt key": ("```yaml\nmodel:\n  num_segmnts: 4\n```\n", "mean num_segments"),
    "a class that is gone": (
        "```yaml\nselector: {class_path: refine_pl.selectors.Gone}\n```\n",
        "refine_pl.selectors has no Gone",
    ),
    "a value that a part refuses": (
        "```yaml\nmodel:\n  policy_loss:\n    class_path: refine_pl.losses.ClippedPolicy\n"
        "    init_args: {dual_clip: 0.5}\n```\n",
        "dual_clip is 0.5",
    ),
    "a value that the evaluation refuses": (
        "```yaml\nevaluation: {level: 95}\n```\n",
        "evaluation.level is 95",
    ),
    "no section": ("```yaml\nwhatever: 1\n```\n", "broken.md, line 1"),
    "not YAML": ("```yaml\na: [1\n```\n", "expected ',' or ']'"),
    "a command that is not there": (
        "```bash\nrefine-pl evaluate\n```\n",
        "no command 'evaluate'",
    ),
    "an option that is not there": (
        "```bash\nrefine-pl fit --config configs/tiny_mid.yaml --model.segments 4\n```\n",
        "model.segments is not a known key",
    ),
    "a recipe that is not there": (
        "```bash\nrefine-pl fit --config configs/gone.yaml\n```\n",
        "no configuration file",
    ),
    "a target that is not there": ("```bash\nmake everything\n```\n", "no target everything"),
    "another program": ("```bash\ncurl example.org\n```\n", "unknown command curl"),
    "no language": ("```\n1\n```\n", "unknown language ''"),
    "bad JSON": ("```json\n{1}\n```\n", "Expecting property name"),
    "no end": ("```python\n1\n", "the block has no end"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_blocks_are_found(text, message, reader):
    with pytest.raises(Exception, match=message):
        reader.read_all(Path("broken.md"), text)


def headings(page):
    """The anchors of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links_of(text):
    """Targets of links and images inside this repository."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    found += re.findall(r'^--8<-- "([^"]+)"', text, re.MULTILINE)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def broken_links(page, text):
    """Those of a page that lead nowhere."""
    broken = []
    for target in links_of(text):
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        if not file.exists():
            file = ROOT / path  # files that a page is made of are named from the root
        if not file.exists() or (anchor and anchor not in headings(file)):
            broken.append(target)
    return broken


def test_links_lead_somewhere():
    checked = 0
    for page in LINKED:
        text = page.read_text()
        assert not broken_links(page, text), page.name
        checked += len(links_of(text))
    assert checked >= MIN_LINKS


def test_broken_links_are_found():
    text = "[a](gone.md), ![b](images/gone.svg), [c](data.md#gone), [d](data.md#corpora)"
    assert broken_links(ROOT / "docs" / "index.md", text) == [
        "gone.md",
        "images/gone.svg",
        "data.md#gone",
    ]


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = ROOT / "docs"
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) == there


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_scalar_is_described():
    text = (ROOT / "docs" / "reading_a_run.md").read_text()
    named = re.findall(r'^--8<-- metrics "(.*)"$', text, re.MULTILINE)
    assert sorted(named) == sorted(GROUPS)
    built = hooks().on_page_markdown(text, config=SimpleNamespace(config_file_path=str(ROOT / "x")))
    described = re.findall(r"^\| `([\w<>]+/[\w<>/]+)` \|", built, re.MULTILINE)
    assert described == [metric.name for name in named for metric in GROUPS[name]]
    assert len(set(described)) == len(described) >= 40


def test_the_status_table_is_true():
    rows = re.findall(
        r"^\| (.*`refine-pl .*) \| (yes|planned) \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    state = {
        name: status
        for cell, status in rows
        for name in re.findall(r"`(?:refine-pl )?([\w-]+)`", cell)
    }
    assert {name for name, status in state.items() if status == "yes"} == set(COMMANDS)
    assert not {name for name, status in state.items() if status == "planned"} & set(COMMANDS)
