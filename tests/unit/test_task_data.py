"""TaskData: batches of tasks, ranks, resume, skipping, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from refine_pl.data import (
    Bytes,
    Files,
    HubDataset,
    MultiDocumentQA,
    NeedleInAHaystack,
    RowFiles,
    StandardLibrary,
    TaskData,
    TaskSource,
)
from refine_pl.errors import CheckpointError, ConfigError, DataError
from refine_pl.randomness import stream_seed
from refine_pl.task_records import TaskRow


class Own(TaskSource):
    """Rows that differ everywhere."""

    def __init__(self, number: int = 10, name: str = "a", answers: bool = True) -> None:
        self.number = number
        self.name = name
        self.answers = answers

    def rows(self, tokenizer):
        self.notes = [f"{self.name} was read"]
        return [
            TaskRow(
                f"{self.name}{i}",
                self.name,
                f"{self.name} {'x' * i}{chr(65 + i)}:",
                (f"yes {i}", "no") if self.answers else (),
                4 + i,
                64 if i % 2 else None,
            )
            for i in range(self.number)
        ]


@pytest.fixture
def make(tmp_path):
    def build(**changes) -> TaskData:
        given = {"batch_size": 4, "cache_dir": str(tmp_path)}
        sources = {"training": {"a": Own(10)}, "validation": {"v": Own(4, "v")}}
        sources |= {"test": {"t": Own(7, "t")}, "predict": {"p": Own(5, "p", answers=False)}}
        return TaskData(Bytes(), **(given | sources | changes))

    return build


def ids(loader) -> list[list[str]]:
    return [[row.id for row in batch.task_rows] for batch in loader]


def as_rank(data: TaskData, rank: int, num_ranks: int, first_hash: str | None = None) -> TaskData:
    """A data module that believes to be one of several ranks."""
    data.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"rank": rank, "num_replicas": num_ranks},
        strategy=SimpleNamespace(broadcast=lambda value: first_hash or value),
        global_rank=rank,
    )
    return data


# --- batches ---


def test_a_training_batch(make):
    data = make(training={"a": Own(4)}, batch_size=4)
    (batch,) = data.train_dataloader()
    assert len(batch) == 4
    assert batch.prompts.rows == batch.answered.rows == (0, 1, 2, 3)
    assert batch.prompts.documents == tuple(row.id for row in batch.task_rows)
    assert batch.cut_tokens == (0, 0, 0, 0)
    for i, row in enumerate(batch.task_rows):
        length = int(batch.prompts.num_tokens[i])
        assert Bytes().decode(batch.prompts.tokens[i, :length].tolist()) == row.prompt
        assert not batch.prompts.tokens[i, length:].any()
        start, end = int(batch.answer_start[i]), int(batch.answered.num_tokens[i])
        whole = Bytes().decode(batch.answered.tokens[i, :end].tolist())
        assert whole == f"{row.prompt} {row.answers[0]}<eos>"
        assert start == length
    tensors = (batch.prompts.tokens, batch.answered.tokens, batch.answer_start)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


def test_epochs_are_shuffled(make):
    loader = make().train_dataloader()
    epochs = [[i for batch in ids(loader) for i in batch] for _ in range(3)]
    assert len(loader) == 2
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = make(num_workers=1).train_dataloader()
    assert [[i for batch in ids(again) for i in batch] for _ in range(3)] == epochs
    assert [i for batch in ids(make(seed=1).train_dataloader()) for i in batch] != epochs[0]


def test_other_stages_keep_order_and_number_rows_by_their_ids(make):
    data = make(test_batch_size=3)
    assert ids(data.val_dataloader()) == [["v0", "v1", "v2", "v3"]]
    assert ids(data.test_dataloader()) == [["t0", "t1", "t2"], ["t3", "t4", "t5"], ["t6"]]
    assert [len(batch) for batch in ids(data.predict_dataloader())] == [3, 2]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        for batch in loader:
            expected = tuple(stream_seed(row.id) for row in batch.task_rows)
            assert batch.prompts.rows == expected
    assert next(iter(data.val_dataloader())).answered is not None
    assert next(iter(data.test_dataloader())).answered is None
    other = make(test_batch_size=2)
    numbers = [n for batch in other.test_dataloader() for n in batch.prompts.rows]
    assert numbers == [n for batch in data.test_dataloader() for n in batch.prompts.rows]


def test_rows_without_answers(make):
    data = make(training={"a": Own(3), "b": Own(1, "b", answers=False)})
    (batch,) = data.train_dataloader()
    assert (batch.answered, batch.answer_start) == (None, None)
    assert data.describe()["training_rows_without_answers"] == 1


@pytest.mark.parametrize("name", ["validation", "test"])
def test_rows_that_are_scored_need_answers(make, name):
    data = make(**{name: {"a": Own(3), "b": Own(1, "b", answers=False)}})
    stage = "test" if name == "test" else "fit"
    with pytest.raises(DataError, match=f"1 of 4 {name} rows have no answers") as refused:
        data.setup(stage)
    assert "row b0" in str(refused.value)


def test_long_prompts(make):
    data = make(training={"a": Own(8)}, max_prompt_tokens=6, batch_size=8)
    (batch,) = data.train_dataloader()
    by_id = {row.id: i for i, row in enumerate(batch.task_rows)}
    i = by_id["a7"]  # "a xxxxxxxH:"
    assert batch.cut_tokens[i] == 5
    assert Bytes().decode(batch.prompts.tokens[i, :6].tolist()) == "a xxH:"
    assert batch.cut_tokens[by_id["a2"]] == 0
    assert data.describe()["training_cut_rows"] == 5
    with pytest.raises(DataError, match="more than max_prompt_tokens 6"):
        make(max_prompt_tokens=6, over_long="refuse").setup("fit")


def test_a_budget_for_all(make):
    (batch, *_) = make().test_dataloader()
    assert [row.max_gen_tokens for row in batch.task_rows] == [4, 5, 6, 7]
    (batch, *_) = make(budget=32).test_dataloader()
    assert [row.max_gen_tokens for row in batch.task_rows] == [32] * 4


def test_sequence_length(make):
    data = make(max_prompt_tokens=100)
    assert data.sequence_length == 100
    data.setup("fit")
    assert data.sequence_length == len("a " + "x" * 9 + "J:")
    data.setup("test")
    assert data.sequence_length == len("t " + "x" * 6 + "G:")
    assert make().sequence_length is None


# --- ranks ---


def test_ranks_share_training_batches(make):
    whole = ids(make().train_dataloader())
    parts = [ids(as_rank(make(), rank, 2).train_dataloader()) for rank in (0, 1)]
    for batch, a, b in zip(whole, *parts, strict=True):
        assert batch == [a[0], b[0], a[1], b[1]]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_ranks_take_whole_test_batches(make, num_ranks):
    whole = ids(make(test_batch_size=2).test_dataloader())
    parts = []
    for rank in range(num_ranks):
        loader = as_rank(make(test_batch_size=2), rank, num_ranks).test_dataloader()
        parts.append(ids(loader))
        assert len(loader) == len(parts[-1])
    for i, batch in enumerate(whole):
        assert parts[i % num_ranks][i // num_ranks] == batch
    assert sum(map(len, parts)) == len(whole) == 4


def test_what_ranks_cannot_share(make):
    for changes, what in (
        ({"batch_size": 5}, "batch_size 5 cannot be divided by 2 ranks"),
        ({"validation_batch_size": 3}, "validation_batch_size 3 cannot be divided by 2 ranks"),
        ({"validation": {"v": Own(3, "v")}}, "3 validation rows cannot be divided by 2 ranks"),
    ):
        with pytest.raises(ConfigError, match=what):
            as_rank(make(**changes), 1, 2).setup("fit")
    with pytest.raises(DataError, match="rank 1 reads another set of rows than rank 0"):
        as_rank(make(), 1, 2, first_hash="f" * 32).setup("fit")


# --- skip and resume ---


def test_rows_that_are_answered_are_left_out(make):
    data = make(test_batch_size=2)
    data.skip = frozenset({"t0", "t1", "t2", "t6"})
    assert ids(data.test_dataloader()) == [["t3"], ["t4", "t5"]]  # the batches stay what they were
    assert ids(as_rank(data, 1, 2).test_dataloader()) == [["t4", "t5"]]
    data.skip = frozenset(f"t{i}" for i in range(7))
    assert len(data.test_dataloader()) == 0
    assert ids(data.test_dataloader()) == []


@pytest.mark.parametrize("given", [0, 1, 2])
def test_resume(make, given):
    whole = make().train_dataloader()
    epochs = [ids(whole) for _ in range(3)]
    stopped = make().train_dataloader()
    list(stopped)
    assert ids(islice(stopped, given)) == epochs[1][:given]
    resumed = make(num_workers=1).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    rest = [ids(resumed), ids(resumed)]
    assert rest[0] == (epochs[1][given:] if given < 2 else epochs[2])


def test_a_state_of_other_data_is_refused(make):
    state = make().train_dataloader().state_dict()
    make(validation={}, budget=None, num_workers=2).train_dataloader().load_state_dict(state)
    for changes in (
        {"training": {"a": Own(9)}},
        {"seed": 1},
        {"batch_size": 2},
        {"max_prompt_tokens": 5},
        {"answer_eos": False},
        {"answer_separator": ""},
        {"budget": 3},
    ):
        with pytest.raises(CheckpointError, match=r"the same rows, tokenizer, max_prompt_tokens"):
            make(**changes).train_dataloader().load_state_dict(state)


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


# --- Lightning ---


class Recorder(LightningModule):
    """One weight; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []

    def training_step(self, batch, batch_idx) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight * batch.answered.tokens.float().mean())
        optimizer.step()
        self.seen.append(tuple(row.id for row in batch.task_rows))

    def validation_step(self, batch, batch_idx) -> None:
        self.seen.append(("validation", *batch.prompts.rows))

    def test_step(self, batch, batch_idx):
        self.seen.append(tuple(row.id for row in batch.task_rows))

    def predict_step(self, batch, batch_idx):
        assert isinstance(batch.task_rows[0], TaskRow)
        return [row.id for row in batch.task_rows]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **settings) -> Trainer:
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": 3}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False}
    defaults |= {"num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    if not settings.get("callbacks"):
        defaults["enable_checkpointing"] = False
    return Trainer(**(defaults | settings))


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumes_after_any_step(make, tmp_path):
    every = ModelCheckpoint(tmp_path / "c", "{step}", every_n_train_steps=1, save_top_k=-1)
    module = Recorder()
    trainer(tmp_path, callbacks=[every], precision="bf16-mixed").fit(module, datamodule=make())
    assert len(module.seen) == 9  # two batches and a validation in each epoch
    trained = [seen for seen in module.seen if seen[0] != "validation"]
    for step in range(1, 6):
        resumed = Recorder()
        path = tmp_path / "c" / f"step={step}.ckpt"
        trainer(tmp_path).fit(resumed, datamodule=make(num_workers=step % 2), ckpt_path=path)
        rest = [seen for seen in resumed.seen if seen[0] != "validation"]
        assert rest == trained[step:]


@pytest.mark.filterwarnings("ignore")
def test_test_and_predict_through_lightning(make, tmp_path):
    module, data = Recorder(), make(test_batch_size=3)
    data.skip = frozenset({"t0"})
    trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert module.seen == [("t1", "t2"), ("t3", "t4", "t5"), ("t6",)]
    assert trainer(tmp_path).predict(module, datamodule=make()) == [
        ["p0", "p1", "p2", "p3"],
        ["p4"],
    ]


def test_a_batch_moves_to_a_device(make):
    (batch, *_) = make().train_dataloader()
    moved = make().transfer_batch_to_device(batch, torch.device("meta"), 0)
    tensors = [moved.prompts.tokens, moved.answered.num_tokens, moved.answer_start]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.task_rows == batch.task_rows
    assert all(isinstance(row, TaskRow) for row in moved.task_rows)


def test_generated_rows_are_kept_where_the_data_say(make, tmp_path):
    data = make(test={"n": NeedleInAHaystack("single", [128], 2)})
    data.setup("test")
    assert len(list((tmp_path / "rows").iterdir())) == 1


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
