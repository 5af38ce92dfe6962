"""A trained tiny model with a tokenizer in the published layout, rows for it, and runs on them."""

import json
import os
from pathlib import Path

import command_line
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

INTERRUPT = """
from lightning.pytorch import Callback


class InterruptAfter(Callback):
    def __init__(self, batches: int):
        self.batches = batches

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx + 1 == self.batches:
            raise KeyboardInterrupt

    on_predict_batch_end = on_test_batch_end
"""


def save_byte_tokenizer(folder):
    """The 256 bytes and an end of text, without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.save_pretrained(folder)


def train(folder):
    """A run of one epoch in ``folder``, which must be the working directory; its checkpoint."""
    save_byte_tokenizer(folder / "tokenizer")
    command_line.write_documents(folder / "docs")
    edits = {
        "data.init_args.tokenizer": {
            "class_path": "refine_pl.data.HubTokenizer",
            "init_args": {"name": str(folder / "tokenizer")},
        },
        "model.backbone.init_args.initializer_range": 0.3,
    }
    config = command_line.write_config(folder / "train.yaml", edits)
    outcome = command_line.run("fit", "--config", config)
    assert outcome.code == 0, outcome.stderr
    (checkpoint,) = folder.glob("runs/**/last.ckpt")
    return checkpoint


TASKS = ("qasper", "trec", "ruler_squadqa")


def rows(number, tasks=TASKS, **columns):
    """Rows whose answers occur now and then in what a random model says."""
    return [
        {
            "id": f"row {i}",
            "task": tasks[i % len(tasks)],
            "prompt": "".join(chr(97 + (i * j + j) % 26) for j in range(20 + 7 * (i % 5))),
            "answers": ["a", "e"],
            "max_gen_tokens": 8 + i % 3,
            **columns,
        }
        for i in range(number)
    ]


def write_rows(path, found):
    """As parquet or JSON lines, by the ending of ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(found), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found))


def config(path, batch_size=2, callbacks=None, **source):
    """A configuration that tests the rows of ``rows.jsonl``."""
    arguments = {"paths": "rows.jsonl", "id_column": "id"} | source
    content = {
        "data": {
            "class_path": "refine_pl.data.TaskData",
            "init_args": {
                "test": {"mine": {"class_path": "refine_pl.data.RowFiles", "init_args": arguments}},
                "test_batch_size": batch_size,
            },
        }
    }
    if callbacks is not None:
        content["trainer"] = {"callbacks": callbacks}
    Path(path).write_text(json.dumps(content))
    return path


def answer(folder, *words):
    """What ``refine-pl test`` prints in a folder, in a process of ``run_processes``."""
    os.chdir(folder)
    outcome = command_line.run("test", *words)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
