"""An adapter in peft's own layout: ``PeftModel.from_pretrained(base, folder)`` reads it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from refine_pl.adapters.lora import Attached, load_peft
from refine_pl.backbones import FastWeightLM
from refine_pl.checksums import write_checksums
from refine_pl.errors import CheckpointError
from refine_pl.whole_files import filled_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapter(
    policy: FastWeightLM,
    attached: Attached,
    folder: str | Path,
    beside: Callable[[str], object] | None = None,
) -> list[str]:
    """Write an adapter as peft loads it onto the published class of its base; names of the files.

    Args:
        policy: with the adapter.
        attached: what is known of it.
        folder: where to write; a folder with ``adapter_config.json`` is complete.
        beside: writes further files into the folder that it is given, such as the tokenizer's.

    Raises:
        CheckpointError: the base was made by the run and lies nowhere, or the folder holds an
            adapter or a model.
        WriteError: the folder cannot be written, or the disk is full.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if attached.base is None:
        raise CheckpointError(
            "the adapter's base was made by the run, and there is no folder to load it from",
            where="--ckpt_path",
            way_out="--merge writes the whole model",
        )
    taken = next((name for name in (CONFIG, "config.json") if (folder / name).exists()), None)
    if taken is not None:
        raise CheckpointError(
            f"{folder} already holds {'an adapter' if taken == CONFIG else 'a model'}",
            allowed="a folder without config.json and adapter_config.json",
            way_out="choose another folder, or remove this one",
        )
    state = load_peft().get_peft_model_state_dict(policy)
    weights = {f"base_model.model.{name}": t.cpu().contiguous() for name, t in state.items()}
    config = copy.copy(attached.config)
    config.target_modules = sorted(_short_names(policy, attached.config.target_modules))
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    config.base_model_name_or_path = attached.base["path"]
    config.revision = attached.base["revision"]
    with filled_folder(folder, last=CONFIG) as scratch:
        save_file(weights, scratch / WEIGHTS, metadata={"format": "pt"})
        if beside is not None:
            beside(str(scratch))
        config.save_pretrained(str(scratch))
        written = {path.name for path in scratch.iterdir() if path.is_file()}
        return sorted({*written, write_checksums(scratch, written).name})


def _short_names(policy: FastWeightLM, names: set[str]) -> set[str]:
    """The ends of the names instead, where all linear maps with that end are reached."""
    linear = load_peft().tuners.lora.LoraLayer, nn.Linear
    maps = {
        name
        for name, module in policy.named_modules()
        if isinstance(module, linear) and ".lora_" not in name and ".base_layer" not in name
    }
    ends = {name.rpartition(".")[2] for name in names}
    whole = {end for end in ends if {n for n in maps if f".{n}".endswith(f".{end}")} <= names}
    return whole | {name for name in names if name.rpartition(".")[2] not in whole}
