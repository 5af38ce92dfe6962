"""A small legal configuration, ways to spoil it, and a runner for ``refine-pl`` in this process."""

import contextlib
import io
import sys
from copy import deepcopy
from dataclasses import dataclass

import yaml

from refine_pl.cli import main

GONE = object()  # as a value in an edit: the key is removed

CONFIG = {
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"save_top_k": -1, "save_last": True},
            }
        ],
    },
    "recorder": {"every_n_iterations": 20},
    "model": {
        "backbone": {
            "class_path": "refine_pl.backbones.DeltaNet",
            "init_args": {
                "vocab_size": 257,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_heads": 2,
            },
        },
        "selector": {
            "class_path": "refine_pl.selectors.Entropy",
            "init_args": {"min_prefix": 4, "min_suffix": 4},
        },
        "rewards": {
            "exact": {"class_path": "refine_pl.rewards.ExactMatch", "init_args": {"weight": 0.5}},
            "mine": {
                "class_path": "refine_pl.rewards.EmbeddingSimilarity",
                "init_args": {"weight": 0.3},
            },
        },
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "num_segments": 2,
        "rollout_length": 3,
        "minibatch_size": 2,
    },
    "data": {
        "class_path": "refine_pl.data.TextData",
        "init_args": {
            "corpus": {"class_path": "refine_pl.data.Files", "init_args": {"paths": "docs/*.txt"}},
            "tokenizer": {"class_path": "refine_pl.data.Bytes"},
            "sequence_length": 48,
            "batch_size": 2,
            "cache_dir": "cache",
        },
    },
}


@dataclass
class Outcome:
    """What a call of the command line left behind."""

    code: int
    stdout: str
    stderr: str


def edited(edits=None):
    """The configuration with the values at some dotted keys replaced, added or removed."""
    config = deepcopy(CONFIG)
    for key, value in (edits or {}).items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        place = config
        for parent in parents:
            place = place[parent] if isinstance(parent, int) else place.setdefault(parent, {})
        if value is GONE:
            del place[last]
        else:
            place[last] = value
    return config


def write_config(path, edits=None):
    path.write_text(yaml.safe_dump(edited(edits), sort_keys=False))
    return path


def write_documents(folder, number=4, length=80):
    folder.mkdir()
    for i in range(number):
        (folder / f"{i}.txt").write_text("".join(chr(97 + (i * j + j) % 26) for j in range(length)))


def run(*argv):
    """``refine-pl argv`` in this process. A fault of the program is raised, as a traceback."""
    out, err = io.StringIO(), io.StringIO()
    path = list(sys.path)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.path[:] = path
    return Outcome(code, out.getvalue(), err.getvalue())


def resolved(*argv):
    """The configuration that ``refine-pl argv`` would run with."""
    outcome = run(*argv, "--print_config")
    assert outcome.code == 0, outcome.stderr
    return yaml.safe_load(outcome.stdout)
