"""Rows with prompts and answers as data for small runs: what follows the asked key?"""

import random

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from refine_pl.data import BatchOrder, Bytes, ResumableLoader, TokenSequence
from refine_pl.data.loader import collate
from refine_pl.randomness import stream_seed
from refine_pl.task_records import TaskBatch, TaskRow


def rows(number, seed=0, pairs=4, prefix="row"):
    """Prompts of some pairs of letters and a question, for example ``ab cd ef ?c``."""
    chooser = random.Random(seed)
    made = []
    for i in range(number):
        keys = chooser.sample("abcdefghijkl", pairs)
        values = [chooser.choice("mnopqrst") for _ in keys]
        text = " ".join(k + v for k, v in zip(keys, values, strict=True))
        filler = "." * chooser.randrange(30, 40)
        asked = chooser.randrange(pairs)
        prompt = f"{filler} {text} ?{keys[asked]}"
        made.append(TaskRow(f"{prefix}-{i}", "niah_single", prompt, (values[asked],), 3, 64))
    return made


def task_batch(some_rows, numbers=None, tokenizer=None):
    """A batch of these rows; their numbers are those of evaluation if left out."""
    tokenizer = tokenizer or Bytes()
    numbers = [stream_seed(row.id) for row in some_rows] if numbers is None else numbers
    prompts = [tokenizer.encode(row.prompt) for row in some_rows]
    answers = [[*tokenizer.encode(row.answers[0]), tokenizer.eos_token_id] for row in some_rows]

    def batch(sequences):
        named = zip(sequences, numbers, some_rows, strict=True)
        return collate([TokenSequence(torch.tensor(s), n, row.id) for s, n, row in named])

    return TaskBatch(
        batch(prompts),
        tuple(some_rows),
        (0,) * len(some_rows),
        batch([p + a for p, a in zip(prompts, answers, strict=True)]),
        torch.tensor([len(p) for p in prompts]),
    )


class Questions(Dataset):
    def __init__(self, some_rows):
        self.rows = some_rows

    def __getitem__(self, key):
        return task_batch([self.rows[i] for i in key.indices], key.rows)


class TaskRowsData(LightningDataModule):
    """A few rows in memory: training, validation, test and predict."""

    def __init__(self, batch_size=4, test_batch_size=2, test_rows=None):
        super().__init__()
        self.batch_size = batch_size
        self.test_batch_size = test_batch_size
        self.sequence_length = 56
        self.tokenizer = Bytes()
        self.training = rows(12, seed=1)
        self.test = rows(5, seed=2, prefix="test") if test_rows is None else test_rows

    def train_dataloader(self):
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        order = BatchOrder(len(self.training), self.batch_size, 3, rank=rank, num_ranks=ranks)
        return ResumableLoader(Questions(self.training), order, "questions", collate_fn=_same)

    def val_dataloader(self):
        return self.test_dataloader()

    def test_dataloader(self):
        size = self.test_batch_size
        batches = [self.test[i : i + size] for i in range(0, len(self.test), size)]
        return DataLoader(batches, batch_size=None, collate_fn=task_batch)

    def predict_dataloader(self):
        return self.test_dataloader()


def _same(batch):
    return batch
