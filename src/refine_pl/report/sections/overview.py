"""Which runs there are, what they were, and where their settings differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from refine_pl.report.metrics import shown
from refine_pl.report.page import (
    Block,
    Cell,
    Details,
    Heading,
    Note,
    Paragraph,
    Row,
    Section,
    Table,
)
from refine_pl.report.runs import Run
from refine_pl.report.settings import MISSING, at, differences, of_one_class, short_class
from refine_pl.report.text import shortened

_VALUE = 160  # characters of a setting
_COMPARED = ("model", "decoding", "data", "test_time_training", "precision", "device")


def runs_section(runs: Sequence[Run]) -> Section:
    """Every run with its folder and what is missing, then the cards."""
    rows: list[Row] = [
        [Cell(run.label, run=run.index), _kind(run), str(run.folder)] for run in runs
    ]
    blocks: list[Block] = [Table(["run", "what", "folder"], rows, text_columns=3)]
    for run in runs:
        blocks += [Note(f"{run.label}: {note}") for note in run.notes]
    training = [run for run in runs if run.training]
    evaluation = [run for run in runs if run.evaluation]
    if training:
        blocks.append(Heading("Training"))
        blocks.append(_card(training, _TRAINING))
    if evaluation:
        blocks.append(Heading("Evaluation"))
        blocks.append(_card(evaluation, _EVALUATION))
    return Section("Runs", blocks)


def settings_section(runs: Sequence[Run]) -> Section | None:
    """The settings that differ, among training runs and among evaluation runs."""
    blocks: list[Block] = []
    kinds = (
        ("training runs", [run for run in runs if run.training and run.config]),
        ("evaluation runs", [run for run in runs if run.evaluation and not run.training]),
    )
    for name, some in kinds:
        some = [run for run in some if run.config]
        if len(some) < 2:
            continue
        rows = differences([run.config for run in some])
        if not rows:
            blocks.append(Paragraph(f"The {name} have the same settings."))
            continue
        columns: Row = ["setting", *(Cell(run.label, run=run.index) for run in some)]
        cells = [[key, *(shortened(value, _VALUE) for value in values)] for key, values in rows]
        caption = f"Keys of config.yaml whose values are not the same in all {name}."
        inner = of_one_class(rows)
        first = [row for row, folded in zip(cells, inner, strict=True) if not folded]
        blocks.append(Table(columns, first, caption, text_columns=len(columns)))
        if any(inner):
            more = [row for row, folded in zip(cells, inner, strict=True) if folded]
            table = Table(columns, more, text_columns=len(columns))
            blocks.append(
                Details(f"{len(more)} settings of classes that not all {name} have", [table])
            )
    cards = _card_differences([run for run in runs if run.evaluation and run.evaluation.card])
    blocks += [cards] if cards else []
    return Section("Settings that differ", blocks) if blocks else None


def _card_differences(some: Sequence[Run]) -> Table | None:
    cards = [run.evaluation.card for run in some if run.evaluation]
    rows = differences([{k: v for k, v in card.items() if k in _COMPARED} for card in cards])
    if not rows:
        return None
    columns: Row = ["card.json", *(Cell(run.label, run=run.index) for run in some)]
    cells = [[key, *(shortened(value, _VALUE) for value in values)] for key, values in rows]
    caption = "What card.json says differently: model, decoding, data, test-time training."
    return Table(columns, cells, caption, text_columns=len(columns))


def _kind(run: Run) -> str:
    if run.sweep:
        return f"sweep of {len(run.sweep.entries)} runs"
    kinds = ["training"] if run.training else []
    kinds += ["evaluation"] if run.evaluation else []
    return " and ".join(kinds)


def _card(runs: Sequence[Run], items: Sequence[tuple[str, Callable[[Run], str]]]) -> Table:
    rows: list[Row] = []
    for name, value in items:
        values = [value(run) for run in runs]
        if any(v not in ("", MISSING) for v in values):
            rows.append([name, *(shortened(v, _VALUE) or MISSING for v in values)])
    columns: Row = ["", *(Cell(run.label, run=run.index) for run in runs)]
    return Table(columns, rows, text_columns=len(columns))


def _setting(*keys: str) -> Callable[[Run], str]:
    return lambda run: short_class(at(run.config, *keys))


def _of_data(value: Callable[[Any], str]) -> Callable[[Run], str]:
    """A value of the data module; with several sources of each one, unless it is the same."""

    def found(run: Run) -> str:
        data = at(run.config, "data")
        sources = at(data, "sources") if isinstance(data, dict) else None
        if not isinstance(sources, dict):
            return value(data)
        values = {name: value(source) for name, source in sources.items()}
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        return ", ".join(f"{name}: {v}" for name, v in values.items() if v != MISSING)

    return found


def _data_setting(key: str) -> Callable[[Run], str]:
    return _of_data(lambda data: short_class(at(data or {}, key)))


def _texts(data: Any) -> str:
    """What a data module reads: its corpus, or the sources of its rows."""
    corpus, rows = at(data or {}, "corpus"), at(data or {}, "training")
    if corpus is None and isinstance(rows, dict):
        return " + ".join(dict.fromkeys(short_class(spec) for spec in rows.values()))
    return short_class(data if corpus is None else corpus)


def _scalar(name: str) -> Callable[[Run], str]:
    return lambda run: shown(name, run.training.scalars.last(name)) if run.training else MISSING


def _backbone(run: Run) -> str:
    pretrained = at(run.config, "model", "pretrained")
    if pretrained:
        return str(pretrained)
    spec = at(run.config, "model", "backbone")
    sizes = [
        f"{name} {at(spec or {}, name)}"
        for name in ("hidden_size", "num_hidden_layers", "num_heads")
        if at(spec or {}, name) is not None
    ]
    return short_class(spec) + (f" ({', '.join(sizes)})" if sizes else "")


def _rewards(run: Run) -> str:
    rewards = at(run.config, "model", "rewards")
    if not isinstance(rewards, dict):
        return MISSING
    weights = {name: at(spec or {}, "weight") for name, spec in rewards.items()}
    return ", ".join(
        f"{name}: {short_class(spec)}" + (f" × {weights[name]:g}" if weights[name] else "")
        for name, spec in rewards.items()
    )


def _phases(run: Run) -> str:
    for callback in at(run.config, "trainer", "callbacks") or []:
        phases = at(callback, "phases")
        if isinstance(phases, list):
            return ", ".join(
                f"{p.get('name')} {p.get('iterations')}"
                + (f" on {p['source']}" if p.get("source") else "")
                for p in phases
                if isinstance(p, dict)
            )
    return MISSING


def _iterations(run: Run) -> str:
    assert run.training
    steps = [steps[-1] for steps, _ in run.training.scalars.curves.values() if steps]
    return f"{max(steps):,}" if steps else MISSING


def _duration(run: Run) -> str:
    assert run.training
    first, last = run.training.scalars.first_time, run.training.scalars.last_time
    if first is None or last is None:
        return MISSING
    return _hours(last - first)


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _started(run: Run) -> str:
    first = run.training.scalars.first_time if run.training else None
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(first)) if first else MISSING


_TRAINING: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("backbone", _backbone),
    ("data", _of_data(_texts)),
    ("sequence length", _data_setting("sequence_length")),
    ("batch size", _data_setting("batch_size")),
    ("phases", _phases),
    ("selector", _setting("model", "selector")),
    ("segments", _setting("model", "num_segments")),
    ("rollouts per position", _setting("model", "rollouts_per_position")),
    ("rollout length", _setting("model", "rollout_length")),
    ("rewards", _rewards),
    ("advantage", _setting("model", "advantage")),
    ("policy weight", _setting("model", "policy_weight")),
    ("optimizer", _setting("model", "optimizer")),
    ("seed", _setting("seed_everything")),
    ("precision", _setting("trainer", "precision")),
    ("started", _started),
    ("iterations", _iterations),
    ("tokens seen", _scalar("run/tokens_seen")),
    ("time from first to last value", _duration),
    ("tokens per second, last", _scalar("time/tokens_per_s")),
    ("peak memory, GiB", _scalar("memory/peak_gib")),
)


def _of_card(*keys: str) -> Callable[[Run], str]:
    def value(run: Run) -> str:
        found: Any = run.evaluation.card if run.evaluation else {}
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return _words(found)

    return value


def _words(value: Any) -> str:
    if value is None or value == {}:
        return MISSING
    if isinstance(value, dict):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items() if v not in (None, {}, []))
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _answers(run: Run) -> str:
    return f"{len(run.evaluation.answers):,}" if run.evaluation else MISSING


def _finished(run: Run) -> str:
    card = run.evaluation.card if run.evaluation else {}
    if "finished" in card and card["finished"] is None:
        return "no: interrupted, or still running"
    return _words(card.get("finished"))


def test_time_training(run: Run) -> str:
    """What was done to the weights before each batch was answered."""
    card = run.evaluation.card if run.evaluation else {}
    if "test_time_training" not in card:
        return MISSING
    return _words(card["test_time_training"]) if card["test_time_training"] else "none"


_EVALUATION: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("model", _of_card("model", "source")),
    ("parameters", _of_card("model", "parameters")),
    ("weights", _of_card("model", "weights_hash")),
    ("data", _of_card("data", "hash")),
    ("rows answered", _answers),
    ("decoding", _of_card("decoding")),
    ("test-time training", test_time_training),
    ("started", _of_card("started")),
    ("finished", _finished),
    ("seconds", _of_card("seconds")),
    ("tokens per second", _of_card("tokens_per_s")),
    ("versions", _of_card("versions")),
    ("command", _of_card("command")),
)
