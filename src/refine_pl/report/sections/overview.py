"""Which runs there are, and what they were."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from refine_pl.report.page import Block, Heading, Note, Row, Table
from refine_pl.report.reading import Run
from refine_pl.report.sections.settings import MISSING, at, settings_table, short_class
from refine_pl.sweep.loop import duration
from refine_pl.training.metrics import format_value
from refine_pl.training.run_folder import stages_of

Card = dict[str, str]


def overview(runs: Sequence[Run]) -> Iterator[Block]:
    """Every run with its folder and what is missing, then the cards."""
    rows: list[Row] = [[run.name, _kind(run), str(run.folder)] for run in runs]
    yield Table(["run", "what", "folder"], rows, text_columns=3)
    for run in runs:
        yield from (Note(f"{run.label}: {note}") for note in run.notes)
    for kind, card_of in (("training", _training), ("evaluation", _evaluation)):
        some = [run for run in runs if kind in run.kinds]
        if some:
            cards = [card_of(run) for run in some]
            settings = [(name, [card[name] or MISSING for card in cards]) for name in cards[0]]
            yield Heading(kind.capitalize())
            yield settings_table("", some, [row for row in settings if {*row[1]} != {MISSING}])


def _kind(run: Run) -> str:
    return f"sweep of {len(run.sweep.entries)} runs" if run.sweep else " and ".join(run.kinds)


def _training(run: Run) -> Card:
    config, scalars = run.config, run.scalars

    def setting(key: str) -> str:
        return short_class(at(config, *key.split(".")))

    def data_setting(name: str) -> str:
        return _of_data(config, lambda data: short_class(at(data, name)))

    def last(name: str) -> str:
        return format_value(name, scalars.last(name))

    times = scalars.times
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(times[0])) if times else MISSING
    steps = [steps[-1] for steps, _ in scalars.curves.values()]
    return {
        "backbone": _backbone(config),
        "data": _of_data(config, _texts),
        "sequence length": data_setting("sequence_length"),
        "batch size": data_setting("batch_size"),
        "phase": setting("phase"),
        "stages": ", ".join(_stage(*stage) for stage in stages_of(config).items()),
        "selector": setting("model.selector"),
        "segments": setting("model.num_segments"),
        "rollouts per position": setting("model.rollouts_per_position"),
        "rollout length": setting("model.rollout_length"),
        "rewards": _rewards(config),
        "advantage": setting("model.advantage"),
        "policy weight": setting("model.policy_weight"),
        "optimizer": setting("model.optimizer"),
        "seed": setting("seed_everything"),
        "precision": setting("trainer.precision"),
        "started": started,
        "iterations": f"{max(steps):,}" if steps else MISSING,
        "tokens seen": last("run/tokens_seen"),
        "time from first to last value": duration(times[1] - times[0]) if times else MISSING,
        "tokens per second, last": last("time/tokens_per_s"),
        "peak memory, GiB": last("memory/peak_gib"),
    }


def _of_data(config: Mapping[str, Any], value: Callable[[Any], str]) -> str:
    """A value of the data module; with several sources of each one, unless it is the same."""
    data = config.get("data")
    sources = at(data, "sources")
    if not isinstance(sources, dict):
        return value(data)
    values = {name: value(source) for name, source in sources.items()}
    if len({*values.values()}) == 1:
        return values.popitem()[1]
    return ", ".join(f"{name}: {found}" for name, found in values.items() if found != MISSING)


def _texts(data: Any) -> str:
    """What a data module reads: its corpus, or the sources of its rows."""
    corpus, rows = at(data, "corpus"), at(data, "training")
    if corpus is None and isinstance(rows, dict):
        return " + ".join(dict.fromkeys(short_class(spec) for spec in rows.values()))
    return short_class(data if corpus is None else corpus)


def _backbone(config: Mapping[str, Any]) -> str:
    if at(config, "model", "pretrained"):
        return str(at(config, "model", "pretrained"))
    spec = at(config, "model", "backbone")
    sizes = {name: at(spec, name) for name in ("hidden_size", "num_hidden_layers", "num_heads")}
    given = ", ".join(f"{name} {size}" for name, size in sizes.items() if size is not None)
    return short_class(spec) + (f" ({given})" if given else "")


def _rewards(config: Mapping[str, Any]) -> str:
    rewards = at(config, "model", "rewards")
    if not isinstance(rewards, dict):
        return MISSING
    weights = {name: at(spec, "weight") for name, spec in rewards.items()}
    return ", ".join(
        f"{name}: {short_class(spec)}" + (f" × {weights[name]:g}" if weights[name] else "")
        for name, spec in rewards.items()
    )


def _stage(name: str, stage: Mapping[str, Any]) -> str:
    source = f" on {stage['source']}" if stage.get("source") else ""
    return f"{name} {stage.get('iterations')}{source}"


def _evaluation(run: Run) -> Card:
    card = run.card
    finished, test_time = card.get("finished"), card.get("test_time_training")
    if "finished" in card and finished is None:
        finished = "no: interrupted, or still running"
    if "test_time_training" in card and not test_time:
        test_time = "none"
    values = {
        "model": at(card, "model", "source"),
        "parameters": at(card, "model", "parameters"),
        "weights": at(card, "model", "weights_hash"),
        "data": at(card, "data", "hash"),
        "rows answered": len(run.answers),
        "decoding": card.get("decoding"),
        "test-time training": test_time,
        "started": card.get("started"),
        "finished": finished,
        "seconds": card.get("seconds"),
        "tokens per second": card.get("tokens_per_s"),
        "versions": card.get("versions"),
        "command": card.get("command"),
    }
    return {name: _words(value) for name, value in values.items()}


def _words(value: Any) -> str:
    match value:
        case None:
            return MISSING
        case dict():
            known = (f"{k} {_words(v)}" for k, v in value.items() if v not in (None, [], {}))
            return ", ".join(known)
        case list():
            return " ".join(map(str, value))
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
