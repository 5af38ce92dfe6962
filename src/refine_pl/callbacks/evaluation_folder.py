"""The folder of an evaluation: a free one, and whether an earlier session can go on in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refine_pl.errors import ConfigError, DataError
from refine_pl.evaluation.run_card import CARD, differences

_SHOWN = 6


def next_free_folder(root: Path) -> Path:
    """``root/version_<n>`` with the first number after all that are taken."""
    taken = [
        int(path.name.removeprefix("version_"))
        for path in root.glob("version_*")
        if path.name.removeprefix("version_").isdecimal()
    ]
    return root / f"version_{max(taken, default=-1) + 1}"


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of an earlier session, or None.

    Raises:
        DataError: it is damaged.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{CARD} is damaged: {error}", where=str(path), way_out="start anew with another --out"
        ) from error
    if not isinstance(card, dict):
        raise DataError(f"{CARD} holds no JSON object", where=str(path))
    return card


def check_folder(folder: Path, name: str, card: Mapping[str, Any] | None) -> None:
    """Refuse a folder that something else was written to.

    Raises:
        ConfigError: it is a file, holds another run, or answers that nothing is known about.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", where="--out", allowed="a folder")
    if card is not None:
        return
    found = next((f for f in ("config.yaml", name, "checkpoints") if (folder / f).exists()), None)
    if found is not None:
        raise ConfigError(
            f"{folder} holds {found} of another run, and no {CARD} of an evaluation",
            where="--out",
            allowed="a new folder, or that of an evaluation that goes on",
        )


def refuse_differences(earlier: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to add answers to those of a different evaluation.

    Raises:
        ConfigError: saying what differs.
    """
    found = differences(earlier, now)
    if not found:
        return
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ConfigError(
        f"this is not the evaluation that {folder} holds: {'; '.join(found[:_SHOWN])}{more}",
        where="--out",
        allowed="the same model, data, decoding and test-time training",
        way_out="another --out starts a new evaluation",
    )


def complete_batches(ids: Sequence[str], answered: set[str], size: int) -> set[str]:
    """Those of the ``answered`` rows whose whole batch of ``size`` rows is answered."""
    batches = [ids[start : start + size] for start in range(0, len(ids), size)]
    return {row for batch in batches if answered.issuperset(batch) for row in batch}
