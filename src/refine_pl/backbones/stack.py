"""What all backbones share: embeddings, a stack of blocks, a final norm, the head.

    x = x + mixer(norm(x));  x = x + mlp(norm(x))

A backbone supplies the mixer, the part that carries a state; blocks may differ from layer to
layer, and have their norms elsewhere.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from refine_kernels.gated_norm import GateActivation, gated_norm, rms_norm
from refine_kernels.swiglu import swiglu
from refine_pl.backbones.base import (
    FastWeightLM,
    Forks,
    LayerState,
    LayerTrail,
    LMOutput,
    OpenPass,
    State,
    StateTrail,
    TokenLayout,
    layout_of,
)
from refine_pl.backbones.head import VocabHead
from refine_pl.backbones.options import ModelOptions
from refine_pl.backbones.replay import ReplayedPass
from refine_pl.backbones.stored_names import Carried
from refine_pl.errors import ConfigError

O = TypeVar("O", bound=ModelOptions)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    ``for_products``: linear layers alone read the result; see
    :func:`refine_kernels.gated_norm.rms_norm`.
    """

    def __init__(self, size: int, eps: float, for_products: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.for_products = eps, for_products

    def forward(
        self, x: Tensor, gate: Tensor | None = None, activation: GateActivation = "silu"
    ) -> Tensor:
        """The same shape and type; times the activated gate, of x's shape or ``[..., 1]``."""
        weight, products = self.factors(), self.for_products
        if gate is None:
            return rms_norm(x, weight, self.eps, for_products=products)
        return gated_norm(x, gate, weight, self.eps, activation=activation, for_products=products)

    def factors(self) -> Tensor:
        """What the normalised values are multiplied with, ``[size]``."""
        return self.weight


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[M, D]`` to ``[M, D]``."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Mixer(nn.Module, ABC):
    """The part of a block that reads other tokens, through a state.

    Attributes:
        kind: what layers of this sort are called in settings and messages.
        has_fixed_state: whether the state stays of one size, however many tokens were read.
    """

    kind: ClassVar[str] = "mixer"
    has_fixed_state: ClassVar[bool] = True

    @abstractmethod
    def forward(
        self, x: Tensor, layout: TokenLayout, state: LayerState | None, keep_trail: bool
    ) -> tuple[Tensor, LayerState, LayerTrail | None]:
        """Mix tokens.

        Args:
            x: ``[M, D]``, sequences and forks as ``layout`` says.
            layout: how the rows are made up.
            state: what the sequences continue.
            keep_trail: return a trail.

        Returns:
            ``[M, D]``, the state after each row's tokens, and the trail if asked for.
        """


@dataclass(frozen=True)
class BlockForm:
    """Where a block's norms are, and what its parts are called in published checkpoints.

    A name of None: there is no such norm.
    """

    mixer: str = "attn"
    before_mixer: str | None = "attn_norm"
    after_mixer: str | None = None
    before_mlp: str | None = "mlp_norm"
    after_mlp: str | None = None
    norm: Callable[[int, float], nn.Module] = RMSNorm


PRE_NORM = BlockForm()
"""As flash-linear-attention's models have them."""


class Block(nn.Module):
    """One layer: ``x + after(mixer(before(x)))``, then the same around the MLP."""

    def __init__(self, mixer: Mixer, options: ModelOptions, form: BlockForm = PRE_NORM) -> None:
        super().__init__()
        self.form = form
        self._add_norms(options, form.before_mixer)
        self.add_module(form.mixer, mixer)
        self._add_norms(options, form.after_mixer, form.before_mlp)
        self.mlp = SwiGLU(options.hidden_size, options.mlp_width)
        self._add_norms(options, form.after_mlp)

    def _add_norms(self, options: ModelOptions, *names: str | None) -> None:
        for name in names:
            if name is not None:
                norm = self.form.norm(options.hidden_size, options.norm_eps)
                if isinstance(norm, RMSNorm):
                    norm.for_products = name in (self.form.before_mixer, self.form.before_mlp)
                self.add_module(name, norm)

    @property
    def mixer(self) -> Mixer:
        """The part that reads other tokens."""
        return cast(Mixer, getattr(self, self.form.mixer))

    def forward(
        self, x: Tensor, layout: TokenLayout, state: LayerState | None, keep_trail: bool
    ) -> tuple[Tensor, LayerState, LayerTrail | None]:
        """``x [M, D]`` to the same shape; state and trail as in :class:`Mixer`."""
        form = self.form
        mixed, state, trail = self.mixer(
            self._norm(form.before_mixer, x), layout, state, keep_trail
        )
        x = x + self._norm(form.after_mixer, mixed)
        x = x + self._norm(form.after_mlp, self.mlp(self._norm(form.before_mlp, x)))
        return x, state, trail

    def _norm(self, name: str | None, x: Tensor) -> Tensor:
        return x if name is None else getattr(self, name)(x)


class _Trunk(nn.Module):
    """Holds the parameters that the published checkpoints keep under ``model.``."""

    def __init__(self, layers: list[Block], embeddings: str, options: ModelOptions) -> None:
        super().__init__()
        sizes = options.vocab_size, options.hidden_size
        self.add_module(embeddings, nn.Embedding(*sizes, padding_idx=options.untrained_token))
        self.layers = nn.ModuleList(layers)
        self.norm = layers[0].form.norm(options.hidden_size, options.norm_eps)


# The class of each model_type. Every subclass of StackedLM with options of its own is one of them.
MODELS: dict[str, type[StackedLM]] = {}


def _check_memory(options: ModelOptions, make_block: Callable[[int], nn.Module]) -> None:
    """Refuse a model whose weights alone are more than this machine can hold.

    Without it the allocator says so, or lets the whole machine run out of memory.

    Raises:
        ConfigError: with both sizes.
    """
    if torch.get_default_device().type != "cpu":
        return
    embeddings = (
        options.vocab_size * options.hidden_size * (1 if options.tie_word_embeddings else 2)
    )
    kinds = options.layer_kinds
    try:
        with torch.device("meta"):
            blocks = sum(
                number * sum(p.numel() for p in make_block(kinds.index(kind)).parameters())
                for kind, number in Counter(kinds).items()
            )
    except RuntimeError as error:  # a size that no integer holds
        if "overflow" not in str(error):
            raise
        blocks = 2**63
    weights = embeddings + blocks
    needed = weights * torch.get_default_dtype().itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError(
            f"the weights of this model take {needed / 2**30:,.0f} GiB ({weights:.3g} parameters), "
            f"and this machine has {memory / 2**30:,.0f} GiB of memory",
            where="model.backbone.init_args",
            way_out="smaller sizes: hidden_size, num_hidden_layers, intermediate_size, vocab_size",
        )


class StackedLM(FastWeightLM):
    """A stack of blocks around mixers.

    A model names its options in ``options_class``, and its own ``__init__`` makes them of keyword
    arguments, so that the fields of the dataclass are its arguments, in Python and in YAML:

        class Mine(StackedLM):
            options_class = MyOptions

            def __init__(self, **fields: Any) -> None:
                super().__init__(MyOptions(**fields), MyMixer)

    A model of unlike layers has a :meth:`make_block` of its own, and needs no ``make_mixer``.

    Args:
        options: of the model.
        make_mixer: called with the options once for each layer.

    Attributes:
        carried: weights of the checkpoint that belong to no part of this model, such as a vision
            tower's, under their published names and as they were stored: for the export.
    """

    options_class: ClassVar[type[ModelOptions]]
    embeddings_name: ClassVar[str] = "embeddings"  # published, under ``model.``

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "options_class" in vars(cls):
            cls.__signature__ = inspect.signature(cls.options_class)  # type: ignore[attr-defined]
            MODELS[cls.options_class.model_type] = cls

    def __init__(self, options: O, make_mixer: Callable[[O], Mixer] | None = None) -> None:
        super().__init__()
        self.options: ModelOptions = options
        self._make_mixer = None if make_mixer is None else partial(make_mixer, options)
        self.carried = Carried()
        self.vocab_size, self.hidden_size = int(options.vocab_size), int(options.hidden_size)
        self.activation_checkpointing = options.activation_checkpointing
        _check_memory(options, self.make_block)
        blocks = [self.make_block(layer) for layer in range(options.num_hidden_layers)]
        self.model = _Trunk(blocks, self.embeddings_name, options)
        self.lm_head = VocabHead(self.hidden_size, self.vocab_size)
        self.tied = options.tie_word_embeddings
        if self.tied:
            self.tie()
        self._initialize(options.initializer_range)

    def make_block(self, layer: int) -> Block:
        """A fresh block for the layer of this number."""
        assert self._make_mixer is not None, "a model without a mixer has a make_block of its own"
        return Block(self._make_mixer(), self.options)

    def fitted(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights as they are stored, but for renaming, to those of this model."""
        return weights

    def published(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this model as published checkpoints have them."""
        return weights

    @property
    def embeddings(self) -> nn.Embedding:
        """Of the tokens."""
        return cast(nn.Embedding, getattr(self.model, self.embeddings_name))

    def tie(self) -> None:
        """Use the embeddings as the head's weight."""
        self.lm_head.weight = cast(nn.Parameter, self.embeddings.weight)

    @torch.no_grad()
    def _initialize(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | VocabHead):
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def head(self) -> VocabHead:
        """The output layer."""
        return self.lm_head

    def config(self) -> dict[str, Any]:
        """The configuration fields under their published names, ``model_type`` among them."""
        return self.options.config()

    def open_pass(self, tokens: Tensor, num_tokens: Tensor) -> OpenPass:
        """See :class:`FastWeightLM`; blocks that run twice run the second time with the forks."""
        # Gathering weights in the middle of a backward pass is FSDP2's own work.
        if self.activation_checkpointing and not isinstance(self, FSDPModule):
            return ReplayedPass(self, tokens, num_tokens)
        return super().open_pass(tokens, num_tokens)

    def forward(
        self,
        tokens: Tensor,
        num_tokens: Tensor | None = None,
        *,
        state: State | None = None,
        forks: Forks | None = None,
        keep_trail: bool = False,
    ) -> LMOutput:
        """Read tokens; see :meth:`FastWeightLM.forward`."""
        again = self.activation_checkpointing and torch.is_grad_enabled()
        lean = self.activation_checkpointing and not torch.is_grad_enabled()
        layout, flat = layout_of(tokens, num_tokens, forks, lean)
        x = self.embeddings(flat)
        states, trails = [], []
        for i, block in enumerate(self.model.layers):
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            before = None if state is None else state.layers[i]
            x, layer_state, trail = run(x, layout, before, keep_trail)
            states.append(layer_state)
            trails.append(trail)
        main, fork = layout.split(self.model.norm(x))
        num_before = torch.zeros_like(layout.num_tokens) if state is None else state.num_tokens
        if forks is not None and fork is not None:
            fork = fork.view(*forks.tokens.shape, self.hidden_size)
        return LMOutput(
            hidden=main,
            state=State(tuple(states), num_before + layout.num_tokens),
            fork_hidden=fork,
            trail=StateTrail(tuple(trails), num_before) if keep_trail else None,
        )
