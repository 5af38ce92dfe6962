"""How transformers' configurations say what rotary positions a model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refine_pl.backbones.option_values import check_value
from refine_pl.backbones.rope import Rope
from refine_pl.errors import ConfigError, did_you_mean

# Positions of images; those of texts are the same in all sections.
_OF_IMAGES = ("mrope_section", "mrope_interleaved")
_KNOWN = ("rope_theta", "rope_type", "type", "partial_rotary_factor", "factor", *_OF_IMAGES)
_THETA = 10_000.0
_WHERE = "backbone option rope_parameters"


def rope_of(
    parameters: Mapping[str, Any] | None, head_width: int, partial: float = 1.0
) -> Rope | None:
    """The rotations of a model's heads; None: it has none.

    Args:
        parameters: the field ``rope_parameters``. A ``rope_theta`` of null turns them off.
        head_width: channels of a head.
        partial: share of them that turns, where ``parameters`` does not say it.

    Raises:
        ConfigError: a field that is not known, or a value that would come out wrong.
    """
    given = dict(parameters or {})
    for name in given:
        if name not in _KNOWN:
            raise ConfigError(
                f"rope_parameters has a field {name!r:.60} that is not known",
                where=_WHERE,
                allowed=", ".join(_KNOWN),
                way_out=did_you_mean(str(name), _KNOWN),
            )
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConfigError(
            f"rope_type={kind!r:.60} is not supported", where=_WHERE, allowed="default, linear"
        )
    theta = given.get("rope_theta", _THETA)
    if theta is None:
        return None
    share = given.get("partial_rotary_factor")
    share = partial if share is None else share
    factor = given.get("factor") if kind == "linear" else 1.0
    for name, value in (
        ("rope_theta", theta),
        ("partial_rotary_factor", share),
        ("factor", factor),
    ):
        check_value(f"rope_parameters.{name}", value, float, 2**40)
        if not value or value <= 0:
            raise ConfigError(f"{name}={value} is not above 0", where=_WHERE)
    width = int(head_width * share)
    if not 2 <= width <= head_width or width % 2:
        raise ConfigError(
            f"{width} of {head_width} channels of a head cannot be rotated",
            where=_WHERE,
            allowed="an even number, at most all: head width x partial_rotary_factor",
        )
    return Rope(width, float(theta), float(factor or 1.0))


def with_rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose ``rope_parameters`` say it all: earlier ones had several fields.

    As transformers reads them: ``rope_scaling`` before ``rope_parameters``, and ``rope_theta`` and
    ``partial_rotary_factor`` for what neither says.
    """
    config = dict(config)
    scaling = config.pop("rope_scaling", None)
    parameters = scaling or config.get("rope_parameters")
    beside = {
        name: config.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in config
    }
    if beside.get("partial_rotary_factor", 0) is None:
        del beside["partial_rotary_factor"]
    if isinstance(parameters, dict) or (parameters is None and beside):
        config["rope_parameters"] = {**beside, **(parameters or {})}
    elif scaling:
        config["rope_parameters"] = scaling  # its type is checked where all are
    return config
