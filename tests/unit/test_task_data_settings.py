"""TaskData: what it says of its rows, what it refuses, and its settings in YAML."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import partial

import pytest
from task_sources import Own, task_data

from refine_pl.data import (
    Bytes,
    Files,
    HubDataset,
    MultiDocumentQA,
    NeedleInAHaystack,
    RowFiles,
    StandardLibrary,
    TaskData,
)
from refine_pl.errors import ConfigError, DataError


@pytest.fixture
def make(tmp_path):
    return partial(task_data, cache_dir=str(tmp_path))


# --- what is said ---


def test_the_hash_is_of_rows_tokenizer_and_limits(make):
    def data_hash(stage, **changes):
        data = make(**changes)
        data.setup(stage)
        return data.data_hash

    assert data_hash("test") == data_hash("test", batch_size=2, answer_eos=False, seed=3)
    others = [
        data_hash("test", test={"t": Own(6, "t")}),
        data_hash("test", max_prompt_tokens=3),
        data_hash("test", budget=3),
        data_hash("fit"),
        data_hash("predict"),
    ]
    assert len({data_hash("test"), *others}) == 6


def test_describe(make):
    data = make()
    data.setup("test")
    assert data.describe() == {
        "tokenizer": "Bytes",
        "data_hash": data.data_hash[:12],
        "test_sources": "t: Own",
        "test_tasks": "t",
        "test_rows": 7,
        "test_prompt_tokens": 7 * 4 + 21,
        "test_longest_prompt": 10,
        "test_cut_rows": 0,
        "test_cut_tokens": 0,
        "test_rows_without_answers": 0,
    }
    data.setup("fit")
    assert data.describe()["training_rows"] == 10
    assert data.describe()["validation_rows"] == 4


def test_the_hash_that_is_printed_is_that_of_the_card(make, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("refine_pl.data.task_data.rank_zero_info", lines.append)
    data = make()
    data.setup("test")
    assert f"(hash {data.data_hash[:12]})" in "".join(lines)


def test_what_is_logged(make, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("refine_pl.data.task_data.rank_zero_info", lines.append)
    data = make(max_prompt_tokens=12)
    data.prepare_data()
    for stage in ("fit", "fit", "validate"):
        data.setup(stage)
    assert [line.splitlines()[0].split(" (")[0] for line in lines] == [
        "Data: 10 training rows",
        "Data: 4 validation rows",
    ]
    assert lines[0].splitlines()[1:] == [
        "  an epoch: 2 batches of 4; 2 rows do not fill another one",
        "  a: 5 rows, prompts of 4 to 12 tokens, median 8",
        "  a at 64 tokens: 5 rows, prompts of 5 to 12 tokens, median 9; 1 cut in the middle, by "
        "up to 1",
        "  a: a was read",
    ]


def test_prompts_that_are_trained_on_and_validated(make):
    with pytest.warns(UserWarning, match="2 validation prompts are training prompts as well"):
        make(validation={"v": Renamed(2)}).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().setup("fit")


class Renamed(Own):
    def rows(self, tokenizer):
        return [row._replace(id=f"v{row.id}") for row in super().rows(tokenizer)]


# --- what is refused ---


@pytest.mark.parametrize(
    ("stage", "name"),
    [("fit", "training"), ("validate", "validation"), ("test", "test"), ("predict", "predict")],
)
def test_a_stage_without_rows(make, stage, name):
    for nothing in (None, {}):
        data = make(**{name: nothing})
        with pytest.raises(ConfigError) as caught:
            data.setup(stage)
        message = str(caught.value)
        assert f"the data have no {name} rows" in message
        assert f"data.init_args.{name}" in message
        assert "refine_pl.data.RowFiles" in message
    with pytest.raises(ConfigError, match="the data have no rows"):
        TaskData(Bytes()).setup()


def test_two_sources_with_one_id(make):
    with pytest.raises(DataError) as caught:
        make(test={"one": Own(3), "two": Own(2)}).setup("test")
    message = str(caught.value)
    assert "two rows have the id 'a0'" in message
    assert "source 'one' (Own), and source 'two' (Own)" in message
    make(training={"one": Own(9)}, test={"two": Own(2)}).setup()  # other stages, other rows


def test_too_few_rows(make):
    with pytest.raises(ConfigError, match="batch_size 11 is more than the 10 training rows"):
        make(batch_size=11).setup("fit")


def test_a_tokenizer_that_lies(make):
    class Small(Bytes):
        vocab_size = 60

    with pytest.raises(DataError, match="0 to 59, by its own vocab_size"):
        TaskData(Small(), test={"t": Own(2)}).setup("test")


# --- on the command line ---

SOURCES = {
    "files": {"class_path": "refine_pl.data.RowFiles", "init_args": {"paths": "a.jsonl"}},
    "needles": {
        "class_path": "refine_pl.data.NeedleInAHaystack",
        "init_args": {
            "kind": "multi_key",
            "lengths": [256, 512],
            "haystack": {"class_path": "refine_pl.data.StandardLibrary"},
        },
    },
    "plain": {
        "class_path": "refine_pl.data.NeedleInAHaystack",
        "init_args": {"kind": "single", "lengths": [256], "haystack": "needles"},
    },
    "documents": {
        "class_path": "refine_pl.data.MultiDocumentQA",
        "init_args": {"paths": ["a.jsonl"], "lengths": [512]},
    },
}


def parser():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TaskData, "data")
    return parser


def test_yaml():
    settings = {"tokenizer": {"class_path": "refine_pl.data.Bytes"}, "test": SOURCES}
    data = parser().instantiate(parser().parse_object({"data": settings})).data
    sources = data.task_sources["test"]
    assert list(sources) == list(SOURCES)
    assert isinstance(sources["files"], RowFiles)
    assert type(sources["needles"].haystack).__name__ == "StandardLibrary"
    assert sources["plain"].haystack == "needles"


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 0), ("over_long", "cut"), ("budget", 0), ("max_prompt_tokens", -1)],
)
def test_yaml_that_is_refused(key, value):
    from jsonargparse import ArgumentError

    settings = {"tokenizer": {"class_path": "refine_pl.data.Bytes"}, "test": SOURCES, key: value}
    with pytest.raises(ArgumentError, match=f"data.{key}"):
        parser().parse_object({"data": settings})


def test_the_parser_knows_the_types_of_corpora_and_sources():
    """Of a dataclass it knows none if an annotation of a base cannot be read in its module."""
    from jsonargparse._parameter_resolvers import get_signature_parameters

    classes = [Files, HubDataset, StandardLibrary, MultiDocumentQA, NeedleInAHaystack, RowFiles]
    for cls in classes:
        parameters = get_signature_parameters(cls, None)
        assert parameters, cls
        assert not [p.name for p in parameters if isinstance(p.annotation, str)], cls

    @dataclass
    class Unread(Annotated):
        number: int = 1

    (parameter,) = get_signature_parameters(Unread, None)
    assert isinstance(parameter.annotation, str)  # what is looked for above


class Annotated:
    other: NoSuchName = None  # noqa: F821


def test_sources_load_nothing_heavy():
    code = (
        "import sys\n"
        "from refine_pl.data import MultiDocumentQA, NeedleInAHaystack, RowFiles, TaskSource\n"
        "heavy = {'lightning', 'transformers', 'datasets', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tasks_of_ones_own_get_a_rule():
    from refine_pl.evaluation import score
    from refine_pl.evaluation.tasks import TASK_RULES

    try:
        TaskData(Bytes(), rules={"my_trivia": {"rule": "f1", "cut": "first_line"}})
        TaskData(Bytes(), rules={"my_trivia": {"rule": "f1", "cut": "first_line"}})  # twice is once
        assert score("my_trivia", "the answer\nnot this", ["answer"]) == 1
        with pytest.raises(ConfigError, match="has a rule already"):
            TaskData(Bytes(), rules={"my_trivia": "exact_match"})
    finally:
        TASK_RULES.pop("my_trivia", None)
    with pytest.raises(ConfigError, match="f2"):
        TaskData(Bytes(), rules={"my_trivia": "f2"})
