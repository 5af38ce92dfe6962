"""Low-rank adapters on a frozen model, by ``peft``: attached, saved, merged."""

from refine_pl.adapters.folder import save_adapter
from refine_pl.adapters.frozen import frozen_copy, keep_frozen_in_16_bits
from refine_pl.adapters.lora import Adapter, Attached, attach, load_peft, merged
from refine_pl.adapters.saved import (
    adapter_of,
    plain_adapter,
    restored,
    saved_adapter,
    with_base,
    without_base,
)

__all__ = [
    "Adapter",
    "Attached",
    "adapter_of",
    "attach",
    "frozen_copy",
    "keep_frozen_in_16_bits",
    "load_peft",
    "merged",
    "plain_adapter",
    "restored",
    "save_adapter",
    "saved_adapter",
    "with_base",
    "without_base",
]
