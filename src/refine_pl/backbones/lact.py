"""LaCT (arXiv 2505.23884): window attention beside fast weights that large chunks update.

f_W(x) = W1 (silu(W0 x) * (W2 x));  a chunk is read with the W from before it, then
W <- rescale(W + direction that increases the sum of rate_i <f_W(k_i), v_i> over the chunk)
"""

from __future__ import annotations

from typing import Any

from refine_pl.backbones.lact_mixer import LaCTMixer
from refine_pl.backbones.lact_options import LaCTOptions
from refine_pl.backbones.stack import StackedLM


class LaCT(StackedLM):
    """LaCT, with the published parameter names. Its arguments: :class:`LaCTOptions`."""

    options_class = LaCTOptions

    def __init__(self, **fields: Any) -> None:
        super().__init__(LaCTOptions(**fields), LaCTMixer)
