"""A model and its tokenizer, for commands that need no trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch

from refine_pl.backbones import FastWeightLM, load_pretrained
from refine_pl.commands.checkpoints import read_checkpoint
from refine_pl.commands.evaluating import MODEL_OPTIONS, find_tokenizer
from refine_pl.commands.export import read_policy
from refine_pl.commands.vocabulary import made
from refine_pl.errors import ConfigError
from refine_pl.tokenizers import Bytes, HubTokenizer, Tokenizer

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed"]


class ModelOptions(Protocol):
    """What names a model, its tokenizer, and where it runs."""

    ckpt_path: str | None
    pretrained: str | None
    tokenizer: str | None
    device: Device
    precision: Precision


class Loaded(NamedTuple):
    """A model that is ready to be used."""

    policy: FastWeightLM
    tokenizer: Tokenizer
    autocast: Callable[[], Any]  # makes the context of every pass


def check_model(options: ModelOptions) -> None:
    """Refuse options that name no model or two, or a device that is not there.

    Raises:
        ConfigError: naming the option.
    """
    if (options.ckpt_path is None) == (options.pretrained is None):
        both = "both --ckpt_path and --pretrained are given"
        raise ConfigError(
            both if options.ckpt_path else "no model is given", allowed=MODEL_OPTIONS.format("--")
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda was asked for, but torch sees no CUDA device",
            where="--device",
            way_out="see refine-pl doctor",
        )


def load_model(options: ModelOptions) -> Loaded:
    """The model on its device, with the tokenizer that is given or that it names itself.

    Raises:
        UserError: one of them cannot be read, or they do not fit together.
    """
    if options.ckpt_path is None:
        policy = load_pretrained(str(options.pretrained))
    else:
        policy = read_policy(options.ckpt_path)
    tokenizer = _tokenizer(options)
    if tokenizer.vocab_size > policy.vocab_size:
        raise ConfigError(
            f"the tokenizer {tokenizer.label} has ids up to {tokenizer.vocab_size - 1:,}, the "
            f"model only {policy.vocab_size:,} tokens",
            where="--tokenizer",
        )
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    half = cuda if options.precision == "auto" else options.precision == "bf16-mixed"
    device = torch.device("cuda" if cuda else "cpu")
    autocast = partial(torch.autocast, device.type, torch.bfloat16) if half else nullcontext
    return Loaded(policy.to(device).eval(), tokenizer, autocast)


def _tokenizer(options: ModelOptions) -> Tokenizer:
    if options.tokenizer is not None:
        return Bytes() if options.tokenizer == "Bytes" else HubTokenizer(options.tokenizer)
    path = options.ckpt_path
    checkpoint = None if path is None else read_checkpoint(path)
    own = None if path is None else Path(path)
    spec, _ = find_tokenizer(options.pretrained, checkpoint, own, by_option=True)
    return made(spec)
