"""``refine-pl export``: a training checkpoint to a folder in the published layout."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine_pl.adapters import Attached, adapter_of, merged, restored, save_adapter
from refine_pl.backbones import FastWeightLM
from refine_pl.backbones.pretrained import build, load_weights, save_pretrained
from refine_pl.backbones.stored_names import Carried
from refine_pl.commands.arguments import Arguments
from refine_pl.commands.checkpoints import read_checkpoint, tokenizer_of
from refine_pl.commands.hub import check_before_export, push, write_card
from refine_pl.errors import CheckpointError, ConfigError
from refine_pl.numbers import check_finite_weights
from refine_pl.tokenizers import HubTokenizer
from refine_pl.training.shard_files import check_shards

_HELP = """Writes config.json, safetensors and the tokenizer of a checkpoint, as published models
have them, with their checksums. The checkpoint may be a file, or the folder that sharded training
writes. Of a run with an adapter the adapter alone is written, as peft loads it; --merge writes the
whole model with the adapter added to its weights."""

_PREFIX = "policy."


def main(argv: Sequence[str]) -> int:
    """Read, check, write.

    Raises:
        UserError: the checkpoint cannot be used, or the folder holds a model.
    """
    parser = Arguments(prog="refine-pl export", description=_HELP)
    add = parser.add_argument
    add("--ckpt_path", required=True, help="a .ckpt file or folder")
    add("--out", required=True, help="folder to write")
    add("--tokenizer", help="folder or name on the hub; that of the run if left out")
    add("--merge", action="store_true", help="of a run with an adapter: write the whole model")
    add("--base", help="of a run with an adapter: the folder that its base is in now")
    add("--push", metavar="OWNER/NAME", help="upload the folder to the hub, with a model card")
    add("--private", action="store_true", help="with --push: nobody else sees a new repository")
    args = parser.parse_args(argv)
    if args.private and args.push is None:
        raise ConfigError("--private is for --push", way_out="--push OWNER/NAME --private")
    if args.push is not None:
        check_before_export(args.push)
    tokenizer = args.tokenizer or _tokenizer_of_run(args.ckpt_path)
    files = export(args.ckpt_path, args.out, tokenizer, merge=args.merge, base=args.base)
    sys.stdout.write(f"{args.out}: {', '.join(files)}\n")
    if tokenizer is None:
        sys.stdout.write("no tokenizer was written: the run has none in the published layout\n")
    if args.push is not None:
        write_card(args.out, args.push, read_checkpoint(args.ckpt_path), args.ckpt_path)
        sys.stdout.write(f"{push(args.out, args.push, args.private)}\n")
    return 0


def export(
    ckpt_path: str,
    out: str,
    tokenizer: str | None,
    *,
    merge: bool = False,
    base: str | None = None,
) -> list[str]:
    """Write the folder ``out``.

    Args:
        ckpt_path: a checkpoint file or folder.
        out: where to write.
        tokenizer: folder or name of a tokenizer to write beside the weights.
        merge: write the whole model of a run with an adapter.
        base: the folder of the weights that the adapter was trained on, if they were moved.

    Returns:
        The names of the files.

    Raises:
        UserError: as for :func:`main`.
    """
    policy, adapter = _read(ckpt_path, base)
    if merge and adapter is None:
        raise CheckpointError(
            f"{ckpt_path} has no adapter that could be merged",
            where="--merge",
            way_out="leave --merge out: the whole model is written anyway",
        )
    loaded = HubTokenizer(tokenizer) if tokenizer is not None else None
    if loaded is not None and loaded.vocab_size > policy.vocab_size:
        raise CheckpointError(
            f"the tokenizer {tokenizer} has ids up to {loaded.vocab_size - 1:,}, the model only "
            f"{policy.vocab_size:,} tokens",
            where="--tokenizer",
        )
    beside = None if loaded is None else loaded.save
    if adapter is not None and not merge:
        return save_adapter(policy, adapter, out, beside)
    return save_pretrained(policy if adapter is None else merged(policy), out, beside)


def read_policy(ckpt_path: str) -> FastWeightLM:
    """The model of a training checkpoint, an adapter added to its weights.

    Args:
        ckpt_path: a checkpoint file or folder.

    Raises:
        CheckpointError: it cannot be read, or does not say what its model is.
    """
    policy, adapter = _read(ckpt_path)
    return policy if adapter is None else merged(policy)


def _read(ckpt_path: str, base: str | None = None) -> tuple[FastWeightLM, Attached | None]:
    """The model and its adapter, if it has one."""
    checkpoint = read_checkpoint(ckpt_path)
    config = checkpoint.get("refine_pl", {}).get("backbone")
    if config is None:
        raise CheckpointError(
            f"{ckpt_path} does not say what its model is",
            where="--ckpt_path",
            allowed="a checkpoint written by `refine-pl fit`",
        )
    weights = _weights(checkpoint, Path(ckpt_path))
    check_finite_weights(weights.items(), ckpt_path, "an earlier checkpoint")
    saved = adapter_of(checkpoint["refine_pl"])
    if saved is not None:
        return restored(config, saved, weights, ckpt_path, base)
    policy = load_weights(build(config, ckpt_path), weights, ckpt_path)
    policy.carried = Carried(checkpoint["refine_pl"].get("carried", {}))
    return policy, None


def _weights(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The policy's tensors, under their published names."""
    state = _shards(path) if path.is_dir() else checkpoint["state_dict"]
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}


def _shards(shards: Path) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    check_shards(shards)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "whole.pt"
        try:
            dcp_to_torch_save(shards, file)
        except Exception as error:  # the checkpoint reader raises its own kinds
            raise CheckpointError(
                f"the shards of {shards} cannot be read: {str(error).splitlines()[0][:200]}",
                where="--ckpt_path",
            ) from error
        whole = torch.load(file, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = whole["state_dict"]
        return state


def _tokenizer_of_run(ckpt_path: str) -> str | None:
    """The folder or name of the run's tokenizer, if it is one that can be published."""
    spec = tokenizer_of(read_checkpoint(ckpt_path), Path(ckpt_path))
    name: str | None = ((spec or {}).get("init_args") or {}).get("name")
    return name
