"""OLMo-Hybrid: gated delta rules with a layer of attention after every third.

A delta rule may turn what it reads around (write strengths up to 2). The layers of attention have
their norms after the mixer and after the MLP instead of before, and the published ones have no
positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from refine_pl.backbones.attention_layer import AttentionMixer, AttentionShape
from refine_pl.backbones.delta_rule_layer import ShortConv, convolve_together
from refine_pl.backbones.delta_rule_options import DeltaRuleShape
from refine_pl.backbones.gated_delta_net import GatedDeltaRuleMixer
from refine_pl.backbones.hybrid_options import FULL, LINEAR, HybridOptions
from refine_pl.backbones.rope_parameters import rope_of
from refine_pl.backbones.stack import Block, BlockForm, StackedLM
from refine_pl.errors import ConfigError

_DELTA_NORM_EPS = 1e-5  # of a delta rule's output, whatever the model's

_DELTA = BlockForm(
    mixer="linear_attn", before_mixer="input_layernorm", before_mlp="post_attention_layernorm"
)
_ATTENTION = BlockForm(
    mixer="self_attn",
    before_mixer=None,
    after_mixer="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
)
# Names in this model and in checkpoints.
_NAMES = (
    (".input_layernorm.", ".attention_layer_norm."),
    (".post_attention_layernorm.", ".feedforward_layer_norm."),
)


@dataclass(frozen=True, kw_only=True)
class OlmoHybridOptions(HybridOptions):
    """The fields of OLMo-Hybrid's configuration; widths and numbers left out follow from others.

    Args:
        head_dim: width of a head of the attention; hidden_size / num_attention_heads if left out.
        linear_allow_neg_eigval: write strengths up to 2 instead of 1.
    """

    model_type = "olmo_hybrid"
    architecture = "OlmoHybridForCausalLM"
    without_effect: ClassVar = {  # what fresh decays are drawn from
        **HybridOptions.without_effect,
        "linear_a_log_min": 0.0,
        "linear_a_log_max": 16.0,
        "linear_dt_min": 0.001,
        "linear_dt_max": 0.1,
        "linear_dt_init_floor": 0.0001,
    }
    carried = r"mtp\..*"
    renamed = tuple((re.escape(stored), own) for own, stored in _NAMES)

    vocab_size: PositiveInt = 100352
    hidden_size: PositiveInt = 3840
    num_hidden_layers: PositiveInt = 32
    max_position_embeddings: PositiveInt = 65536
    eos_token_id: int | list[int] | None = 100257
    pad_token_id: int | None = 100277
    intermediate_size: PositiveInt = 11008
    num_attention_heads: PositiveInt = 30
    head_dim: PositiveInt | None = None
    linear_allow_neg_eigval: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in (LINEAR, FULL):
            if kind not in self.layer_kinds:
                raise ConfigError(
                    f"layer_types has no {kind}",
                    where="backbone option layer_types",
                    allowed=f"at least one {LINEAR} and one {FULL}",
                )

    def default_kinds(self) -> list[str]:
        """See :class:`HybridOptions`."""
        kinds = [FULL if i % 4 == 3 else LINEAR for i in range(self.num_hidden_layers)]
        return kinds if FULL in kinds else [*kinds[:-1], FULL]

    @property
    def attention_shape(self) -> AttentionShape:
        """See :class:`HybridOptions`."""
        width = self.head_dim or self.hidden_size // self.num_attention_heads
        given = self.rope_parameters or {}
        if given.get("partial_rotary_factor") not in (None, 1):
            raise ConfigError(
                "partial_rotary_factor is not a field of this model: all channels turn",
                where="backbone option rope_parameters",
            )
        return AttentionShape(
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_width=width,
            rope=rope_of(self.rope_parameters, width),
            qkv_bias=self.attention_bias,
            out_bias=self.attention_bias,
            qk_norm="all heads",
            norm_eps=self.rms_norm_eps,
        )

    @property
    def delta_shape(self) -> DeltaRuleShape:
        """See :class:`HybridOptions`."""
        heads = self.linear_num_key_heads or self.num_attention_heads
        width = self.linear_key_head_dim or int(0.75 * self.hidden_size / heads)
        return DeltaRuleShape(
            hidden_size=self.hidden_size,
            num_heads=heads,
            value_heads=self.linear_num_value_heads or self.num_attention_heads,
            key_width=width,
            value_width=self.linear_value_head_dim or 2 * width,
            conv_size=self.linear_conv_kernel_dim,
            use_gate=True,
            strength_scale=2.0 if self.linear_allow_neg_eigval else 1.0,
            norm_eps=_DELTA_NORM_EPS,
            backend=self.backend,
        )

    def config(self) -> dict[str, Any]:
        """See :class:`HybridOptions`; the published configuration has no ``head_dim``."""
        config = super().config()
        if self.head_dim is None:
            del config["head_dim"]
        return config


class OlmoDeltaMixer(GatedDeltaRuleMixer):
    """The mixer of a layer of ``linear_attention``: one convolution over the three projections."""

    def __init__(self, shape: DeltaRuleShape) -> None:
        super().__init__(replace(shape, conv_size=None))
        assert shape.conv_size is not None
        self.has_convs, self.conv_size, self.sizes = True, shape.conv_size, shape.sizes
        self.conv1d = ShortConv(sum(shape.sizes), shape.conv_size, True)

    def project(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """See :class:`DeltaRuleCore`."""
        return (torch.cat(super().project(x), -1),)

    def convolve(
        self, inputs: tuple[Tensor, ...], tails: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`DeltaRuleCore`."""
        return convolve_together(self.conv1d, self.sizes, inputs, tails)


class OlmoHybrid(StackedLM):
    """OLMo-Hybrid, with transformers' parameter names. Its arguments: :class:`OlmoHybridOptions`.

    Checkpoints have two of its norms under other names, and its convolution in three parts.
    """

    options_class = OlmoHybridOptions
    embeddings_name = "embed_tokens"

    def __init__(self, **fields: Any) -> None:
        super().__init__(OlmoHybridOptions(**fields))

    def make_block(self, layer: int) -> Block:
        """See :class:`StackedLM`."""
        assert isinstance(self.options, OlmoHybridOptions)
        if self.options.layer_kinds[layer] == FULL:
            return Block(AttentionMixer(self.options.attention_shape), self.options, _ATTENTION)
        return Block(OlmoDeltaMixer(self.options.delta_shape), self.options, _DELTA)

    def fitted(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`StackedLM`. The parts may be of any sizes: transformers writes equal ones."""
        weights = dict(weights)
        for whole, parts in self._convolutions():
            if all(part in weights for part in parts):
                tensors = [weights.pop(part) for part in parts]
                weights[whole] = torch.cat(tensors)
        return weights

    def published(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :class:`StackedLM`. The parts are those of q, k and v."""
        assert isinstance(self.options, OlmoHybridOptions)
        weights = dict(weights)
        for whole, parts in self._convolutions():
            split = weights.pop(whole).split(self.options.delta_shape.sizes)
            weights |= zip(parts, (part.contiguous().clone() for part in split), strict=True)
        for own, stored in _NAMES:
            weights = {name.replace(own, stored): tensor for name, tensor in weights.items()}
        return weights

    def _convolutions(self) -> Iterator[tuple[str, list[str]]]:
        """The name of each convolution's weight, and those of its parts."""
        for layer, kind in enumerate(self.options.layer_kinds):
            if kind == LINEAR:
                mixer = f"model.layers.{layer}.linear_attn."
                yield f"{mixer}conv1d.weight", [f"{mixer}{x}_conv1d.weight" for x in "qkv"]
