"""Sharded training (FSDP2): every process keeps a part of each weight, gradient and moment.

Weights are put together for a module's forward and backward pass, and taken apart after it. All
processes must do so together. Where they run different numbers of passes (validation, answers of
different lengths), or many short ones (rollouts), the whole policy is put together around them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from refine_pl.backbones import FastWeightLM
from refine_pl.backbones.stack import Block


def shard(policy: FastWeightLM, mesh: DeviceMesh) -> None:
    """Shard a model over the processes of a mesh: each block, the head, and what is left.

    Nothing is done to a model that is sharded already.

    Args:
        policy: the model; its parameters become sharded ones.
        mesh: of one dimension.
    """
    if isinstance(policy, FSDPModule):
        return
    # Nothing here changes in place what a module returns; last.ckpt is written anew on purpose.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
    for module in list(policy.modules()):
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    # A tied weight has one owner, the model. It keeps it whole from the forward to the end of the
    # backward pass, and the head is called in between.
    head = set(policy.head.modules())
    others = {p for m in policy.modules() if m not in head for p in m.parameters(recurse=False)}
    if others.isdisjoint(policy.head.parameters()):
        fully_shard(policy.head, mesh=mesh)
    fully_shard(policy, mesh=mesh)


def gather(policy: FastWeightLM) -> None:
    """Put the whole model together on every process, until :func:`scatter`; all must call it."""
    # Weights that are put together in inference mode could never be trained again.
    with torch.inference_mode(False), torch.no_grad():
        for module in _sharded(policy):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def scatter(policy: FastWeightLM, between: bool = False) -> None:
    """Take the model apart again, after :func:`gather`.

    Args:
        policy: the model.
        between: a backward pass is still to come of a forward pass before :func:`gather`.
    """
    for i, module in enumerate(_sharded(policy)):
        # The model's own weights, outside of blocks, stay whole from forward to backward.
        module.set_reshard_after_forward(i > 0, recurse=False)
        if i > 0 or not between:
            module.reshard()


@contextmanager
def whole(policy: FastWeightLM, between: bool = False) -> Iterator[None]:
    """Inside, passes need no other process. A model that is not sharded is whole anyway.

    Args:
        policy: the model.
        between: as in :func:`scatter`.
    """
    gather(policy)
    try:
        yield
    finally:
        scatter(policy, between)


def class_name(policy: FastWeightLM) -> str:
    """Of the model's class, sharded or not."""
    name = type(policy).__name__
    return name.removeprefix("FSDP") if isinstance(policy, FSDPModule) else name


def _sharded(policy: FastWeightLM) -> list[FSDPModule]:
    """The modules that own sharded weights, the model first."""
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]
