"""Kinds of models that people may well try, and that are not supported yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_EXPERTS = "a mixture of experts"
_MAMBA = "a hybrid of another recurrence than the delta rule"
_KINDS = {
    **dict.fromkeys(("qwen3_next", "kimi_linear"), _EXPERTS),
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "jamba", "nemotron_h"), _MAMBA),
}
# How configurations give the number of their experts.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def not_yet(config: Mapping[str, Any], known: Collection[str] | None) -> str | None:
    """What a model is that is not supported yet, by its ``model_type`` or its experts; or None.

    Args:
        config: as published; the language model's fields may be in a ``text_config``.
        known: the fields of the class for this ``model_type``; None if there is no such class.
    """
    kind = config.get("model_type")
    if known is None and isinstance(kind, str):
        if kind in _KINDS:
            return _KINDS[kind]
        if "moe" in kind.split("_"):
            return _EXPERTS
    text = config.get("text_config")
    parts = (config, text) if isinstance(text, Mapping) else (config,)
    counts = [p.get(name) for p in parts for name in _COUNTS if name not in (known or ())]
    many = any(type(count) is int and count > 1 for count in counts)
    return _EXPERTS if many else None
