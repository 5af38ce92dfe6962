"""The recipes in ``configs/``, and the same recipes at a size that a test can run."""

import json
from pathlib import Path

import torch
import yaml
from command_line import write_documents

from refine_pl.backbones import DeltaNet, GatedDeltaNet, LaCT, Qwen35Multimodal, save_pretrained

CONFIGS = Path(__file__).parents[2] / "configs"

# Folders of files that are laid over a recipe; other tests have them.
OVERLAYS = {"ablations", "eval", "evidence", "hardware"}

# Published models that recipes name, with their own settings and small sizes.
SMALL = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2}
PUBLISHED = {
    "fla-hub/delta_net-1.3B-100B": (DeltaNet, {"num_heads": 2}),
    "m-a-p/1.3B-100B-GatedDeltaNet-pure": (
        GatedDeltaNet,
        {"num_heads": 2, "head_dim": 16, "expand_v": 1},
    ),
    "YunjinZhang/lact_llm": (
        LaCT,
        {
            "num_attn_heads": 2,
            "num_lact_heads": 2,
            "lact_chunk_size": 32,
            "window_size": 32,
            "w0_w2_low_rank": 4,
            "rope_theta": 1e6,
        },
    ),
    "Qwen/Qwen3.5-0.8B-Base": (
        Qwen35Multimodal,
        {
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "full_attention_interval": 2,
            "tie_word_embeddings": True,
        },
    ),
}
SIZES = {
    "trainer": {"accelerator": "cpu"},
    "model": {"num_segments": 2, "minibatch_size": 2, "microbatch_size": 1},
    "TextData": {
        "corpus": {"class_path": "refine_pl.data.Files", "init_args": {"paths": "docs/*.txt"}},
        "sequence_length": 160,
        "min_tokens": 100,
        "batch_size": 4,
        "validation_batch_size": 2,
        "num_validation_documents": 2,
    },
    "TaskData": {"batch_size": 4},
}
ROWS = "rows.jsonl"


def recipes(folder=CONFIGS):
    """Complete configurations: those that lie in the folder itself."""
    return sorted(folder.glob("*.yaml"))


def model_folder(name, folder):
    """A published model at a small size, as the hub would hold it."""
    cls, fields = PUBLISHED[name]
    target = folder / "models" / name
    if not target.exists():
        torch.manual_seed(0)
        save_pretrained(cls(**SMALL, **fields, initializer_range=0.2), target)
    return target


def shrink(config, folder):
    """Make the sizes small: parts, stages and callbacks stay."""
    config["trainer"] = config.get("trainer", {}) | SIZES["trainer"]
    for stage in config.get("schedule", {}).get("stages", {}).values():
        stage["iterations"] = 2
    if "recorder" in config:
        config["recorder"]["every_n_iterations"] = 1
    if "every_n_train_steps" in config.get("checkpoint", {}):
        config["checkpoint"]["every_n_train_steps"] = 2
    model = config["model"]
    arguments = model.get("backbone", {}).get("init_args", {})
    if "path_or_name" in arguments:
        arguments["path_or_name"] = str(model_folder(arguments["path_or_name"], folder))
    elif arguments:
        arguments |= {"hidden_size": 32, "num_hidden_layers": 2}
        if "linear_num_key_heads" in arguments:  # of both kinds of layers one
            arguments["layer_types"] = ["linear_attention", "full_attention"]
    model |= SIZES["model"]
    shrink_data(config["data"], folder)
    return config


def shrink_data(data, folder):
    """Small rows and batches, bytes as tokens, and nothing from a network."""
    arguments = data["init_args"]
    if "sources" in arguments:
        for source in arguments["sources"].values():
            shrink_data(source, folder)
        return
    arguments |= SIZES[data["class_path"].rpartition(".")[2]]
    arguments |= {
        "tokenizer": {"class_path": "refine_pl.data.Bytes"},
        "cache_dir": str(folder / "cache"),
    }
    if "max_prompt_tokens" in arguments:
        arguments["max_prompt_tokens"] = 128
    for stage in ("training", "validation", "test"):
        for source in arguments.get(stage, {}).values():
            if "paths" in source["init_args"]:
                source["init_args"]["paths"] = str(folder / ROWS)
            else:
                source["init_args"]["num_rows"] = 8


def write_rows(path, number=8):
    """Rows of questions, under the columns of both benchmarks."""
    rows = [
        {
            "prompt": " ".join(
                f"The word of {i * j} is {chr(97 + (i + j) % 26)}." for j in range(9)
            ),
            "answer": [f"word {i}"],
            "answers": [f"word {i}"],
            "task": "ruler_squadqa" if i % 2 else "qasper",
            "max_gen_tokens": 8,
        }
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_small(path, folder):
    """A small copy of a recipe below ``folder``, with the documents and rows that it reads."""
    if not (folder / "docs").exists():
        write_documents(folder / "docs", number=12, length=400)
        write_rows(folder / ROWS)
    config = shrink(yaml.safe_load(path.read_text()), folder)
    small = folder / "small" / path.name
    small.parent.mkdir(exist_ok=True)
    small.write_text(yaml.safe_dump(config, sort_keys=False))
    return small
