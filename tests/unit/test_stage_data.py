"""StageData: each stage reads its source, and a run resumes anywhere in the plan."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small_tokenizers import byte_level

from refine_pl.data import Bytes, Corpus, StageData, TaskData, TaskSource, TextData
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.task_records import TaskRow

PLAN = [("text", 5), ("tasks", 4), ("text", 3), ("tasks", 1)]


class Lines(Corpus):
    def read(self):
        for i in range(14):
            yield f"d{i}", f"document {i:02d} " * 6


class Own(TaskSource):
    def __init__(self, name: str = "a", number: int = 7) -> None:
        self.name = name
        self.number = number

    def rows(self, tokenizer):
        return [
            TaskRow(f"{self.name}{i}", "qasper", f"{self.name} {i}?", (str(i),), 4)
            for i in range(self.number)
        ]


@pytest.fixture
def make(tmp_path):
    def build(plan=PLAN, text=None, tasks=None, workers=0) -> StageData:
        text_settings = {"sequence_length": 16, "batch_size": 4, "crop": "random"}
        text_settings |= {"num_validation_documents": 2, "cache_dir": str(tmp_path)}
        text_settings |= {"num_workers": workers}
        task_settings = {"training": {"a": Own()}, "validation": {"v": Own("v", 2)}}
        task_settings |= {"batch_size": 2, "num_workers": workers}
        data = StageData(
            {
                "text": TextData(Lines(), Bytes(), **(text_settings | (text or {}))),
                "tasks": TaskData(Bytes(), **(task_settings | (tasks or {}))),
            }
        )
        if plan:
            data.set_plan(plan)
        return data

    return build


def seen(batch) -> tuple:
    prompts = getattr(batch, "prompts", batch)
    return (*prompts.documents, *(int(row.sum()) for row in prompts.tokens))


def all_of(loader) -> list[tuple]:
    return [seen(batch) for batch in loader]


def test_sources_go_on_where_they_were(make):
    data = make()
    loader = data.train_dataloader()
    batches = all_of(loader)
    assert len(loader) == len(batches) == 13
    text = data.sources["text"].train_dataloader()  # three batches in an epoch
    tasks = data.sources["tasks"].train_dataloader()  # three as well
    expected_text = [seen(batch) for _ in range(3) for batch in text]
    expected_tasks = [seen(batch) for _ in range(2) for batch in tasks]
    assert batches[:5] + batches[9:12] == expected_text[:8]
    assert batches[5:9] + batches[12:] == expected_tasks[:5]
    assert all_of(loader) == []  # the plan is over


# Workers at a few places only: they are slow to start.
@pytest.mark.parametrize(
    ("given", "workers"), [*((given, 0) for given in range(14)), (3, 1), (5, 1), (9, 1), (11, 1)]
)
def test_resume_anywhere(make, given, workers):
    whole = all_of(make().train_dataloader())
    stopped = make(workers=workers).train_dataloader()
    assert all_of(islice(stopped, given)) == whole[:given]
    state = stopped.state_dict()
    resumed = make(workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # a run that is stopped again at once
    assert all_of(resumed) == whole[given:]


def test_what_was_not_reached_may_be_planned_anew(make):
    stopped = make().train_dataloader()
    first = all_of(islice(stopped, 6))
    state = stopped.state_dict()
    for plan in (
        [("text", 5), ("tasks", 9)],
        [("text", 2), ("text", 3), ("tasks", 1), ("text", 1)],
    ):
        resumed = make(plan).train_dataloader()
        resumed.load_state_dict(state)
        assert first + all_of(resumed) == all_of(make(plan).train_dataloader())
    for plan in ([("text", 6), ("tasks", 3)], [("tasks", 6)], [("text", 5)]):
        with pytest.raises(CheckpointError, match="the first 6 batches are planned otherwise"):
            make(plan).train_dataloader().load_state_dict(state)


def test_other_data_are_refused(make):
    stopped = make().train_dataloader()
    list(islice(stopped, 3))
    early = stopped.state_dict()
    list(islice(stopped, 4))
    late = stopped.state_dict()
    changed = make(tasks={"training": {"a": Own(number=5)}})
    changed.train_dataloader().load_state_dict(early)  # it had not been read
    with pytest.raises(CheckpointError, match="the data of source 'tasks' differ"):
        changed.train_dataloader().load_state_dict(late)
    with pytest.raises(CheckpointError, match="the data of source 'text' differ"):
        make(text={"seed": 4}).train_dataloader().load_state_dict(early)


def test_attributes(make, tmp_path):
    data = make(tasks={"max_prompt_tokens": 9})
    assert data.tokenizer.fingerprint == Bytes().fingerprint
    assert data.batch_size is None
    assert data.sequence_length == 16
    assert make(tasks={"batch_size": 4}).batch_size == 4
    data.setup("fit")
    names = [seen(batch)[:2] for loader in data.val_dataloader() for batch in loader]
    assert len(names) == 2
    assert names[1] == ("v0", "v1")
    assert len(make(tasks={"validation": None}).val_dataloader()) == 1
    assert (
        make(text={"num_validation_documents": 0}, tasks={"validation": None}).val_dataloader()
        == []
    )
    without = make(tasks={"validation": None})
    without.setup("validate")  # the tasks have nothing to validate, which is not an error
    without.prepare_data()


def test_sources_know_the_trainer(make):
    data = make(text={"num_validation_documents": 0}, tasks={"validation": None})
    data.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"rank": 1, "num_replicas": 2},
        strategy=SimpleNamespace(broadcast=lambda value: value),
        global_rank=1,
        state=SimpleNamespace(fn="fit"),
    )
    data.prepare_data()
    data.setup("fit")
    half = all_of(data.train_dataloader())
    whole = all_of(make(text={"num_validation_documents": 0}).train_dataloader())
    assert [batch[0] for batch in half] == [batch[1] for batch in whole]


def test_what_is_refused(make, tmp_path):
    with pytest.raises(ConfigError, match="does not know which stage reads which source"):
        make(plan=None).train_dataloader()
    with pytest.raises(ConfigError, match=r"'txt'[\s\S]*did you mean text\?"):
        make(plan=None).set_plan([("txt", 3)])
    for stage in ("test", "predict"):
        with pytest.raises(ConfigError, match=f"StageData has no rows to {stage}"):
            make().setup(stage)
    with pytest.raises(ConfigError, match="the data have no sources"):
        StageData({})
    with pytest.raises(ConfigError, match="the source 'plain' has no tokenizer"):
        StageData({"plain": LightningDataModule()}).setup("fit")
    other = TaskData(byte_level(tmp_path / "tokenizer"), training={"a": Own()})
    with pytest.raises(ConfigError, match="'text' and 'other' have different tokenizers"):
        StageData({"text": make().sources["text"], "other": other}).setup("fit")


def test_yaml():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(StageData, "data")
    source = {
        "class_path": "refine_pl.data.TaskData",
        "init_args": {"tokenizer": {"class_path": "refine_pl.data.Bytes"}},
    }
    data = parser.instantiate(parser.parse_object({"data": {"sources": {"post": source}}})).data
    assert isinstance(data.sources["post"], TaskData)


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight * getattr(batch, "prompts", batch).tokens.float().mean())
        optimizer.step()
        self.seen.append(seen(batch))

    def validation_step(self, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated.append(dataloader_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 13}])
def test_a_run_resumes_after_any_step(make, tmp_path, length):
    def fit(ckpt_path=None, callbacks=()):
        module = Recorder()
        Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=bool(callbacks),
            callbacks=list(callbacks),
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            **length,
        ).fit(module, datamodule=make(), ckpt_path=ckpt_path)
        return module

    every = ModelCheckpoint(tmp_path / "c", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(callbacks=[every])
    assert whole.seen == all_of(make().train_dataloader())
    assert whole.validated == [0, 1]
    for step in range(1, 13):
        path = tmp_path / "c" / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        assert fit(path).seen == whole.seen[step:], f"resumed after step {step}"
