"""TaskData: batches of tasks, ranks, resume, skipping, and runs of Lightning."""

from __future__ import annotations

from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from task_sources import Own, task_data

from refine_pl.data import Bytes, NeedleInAHaystack, TaskData
from refine_pl.errors import CheckpointError, ConfigError, DataError
from refine_pl.randomness import stream_seed
from refine_pl.task_records import TaskRow


@pytest.fixture
def make(tmp_path):
    return partial(task_data, cache_dir=str(tmp_path))


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
