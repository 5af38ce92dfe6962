"""The rule of each task: ``score(task, response, references)``, and how to add a task.

Scores are ratios in [0, 1]; tables show them times 100, as the benchmarks do.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

from refine_pl.errors import ConfigError, DataError, nearest
from refine_pl.evaluation import rules
from refine_pl.evaluation.rouge_l import rouge_l
from refine_pl.evaluation.rules import CUTS, Compare, best


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to score an output: cut it, then compare it with the references.

    Args:
        name: what tables and files call it.
        compare: ``(cut output, references) -> float`` in [0, 1].
        cut: name of a function of ``CUTS``, applied to the output first.
        further: names of ``RULES`` that are reported beside it, under their own names.
    """

    name: str
    compare: Compare
    cut: str = "whole"
    further: tuple[str, ...] = ()

    def __call__(self, response: str, references: Sequence[str]) -> float:
        """Score of one output, in [0, 1].

        Raises:
            DataError: there are no references.
            PartError: a function of the user's own raised, or returned something else.
        """
        _check(response, references)
        cut = CUTS[self.cut](response)
        label = f"rule {self.name!r}"
        try:
            given: Any = self.compare(cut, list(references))
        except (Exception, SystemExit) as error:
            from refine_pl.faults import blame  # brings torch, which scoring does without

            with blame("data.rules", self.compare, label=label):
                raise error
        try:
            value = math.nan if isinstance(given, str | bytes) else float(given)
        except (TypeError, ValueError, RuntimeError):
            value = math.nan
        allowed = "a number from 0 to 1"
        if math.isnan(value):
            from refine_pl.faults import fault

            came = f"returned {reprlib.repr(given)}"
            raise fault("data.rules", self.compare, came, allowed, label)
        if not 0 <= value <= 1:
            raise ConfigError(f"{label} returned {value}", allowed=allowed)
        return value


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("exact_match", partial(best, rules.exact_match)),
        Rule("contains_any", rules.contains_any),
        Rule("recall", rules.recall),
        Rule("f1", partial(best, rules.f1)),
        Rule("rouge_l", partial(best, rouge_l)),
        Rule("edit_similarity", partial(best, rules.edit_similarity)),
        Rule("needle_recall", rules.recall),
        Rule("ruler_qa", rules.contains_any, "first_line_cleaned", ("ruler_qa_official",)),
        Rule("ruler_qa_official", rules.contains_any, "cleaned"),
        Rule("qa_f1", partial(best, rules.f1), "first_line"),
        Rule("classification", partial(best, rules.classification), "first_line_after_newlines"),
        Rule("code_similarity", partial(best, rules.code_similarity), "line_of_code"),
        Rule("count", partial(best, rules.count)),
        Rule("retrieval", partial(best, rules.retrieval)),
    )
}
"""Rules by name, for tasks of one's own. The first six are general, the others of a benchmark."""

_NAMED_AFTER = {
    "needle_recall": ("niah_single", "niah_multi_key", "niah_multi_query", "niah_multi_value"),
    "ruler_qa": ("ruler_squadqa", "ruler_hotpotqa"),
    "qa_f1": ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"),
    "rouge_l": ("gov_report", "qmsum", "multi_news"),
    "classification": ("trec",),
    "code_similarity": ("lcc", "repobench-p"),
    "count": ("passage_count",),
    "retrieval": ("passage_retrieval_en",),
}
TASK_RULES: dict[str, Rule] = {
    **{task: RULES[rule] for rule, tasks in _NAMED_AFTER.items() for task in tasks},
    "triviaqa": replace(RULES["qa_f1"], cut="first_line_after_newlines"),
    "samsum": replace(RULES["rouge_l"], cut="first_line_after_newlines"),
}
"""The released rule of every task that is known; :func:`register` adds to it."""


def score(task: str, response: str, references: Sequence[str]) -> float:
    """Score of one response by the released rule of ``task``, in [0, 1].

    Args:
        task: a name of ``TASK_RULES``, or ``niah`` and anything after ``niah_``.
        response: what the model answered, as it came (the rule cuts it).
        references: right answers, at least one.

    Raises:
        ConfigError: the task is not known.
        DataError: there is no reference, or something is not text.
    """
    return rule_of(task)(response, references)


def scores(task: str, response: str, references: Sequence[str]) -> dict[str, float]:
    """Scores of one response by rule name: the released rule of ``task`` first, then further ones.

    For ``ruler_squadqa``: ``{"ruler_qa": ..., "ruler_qa_official": ...}``. Arguments and errors are
    those of :func:`score`.
    """
    return {rule.name: rule(response, references) for rule in rules_of(task)}


def rules_of(task: str) -> list[Rule]:
    """All rules that are reported for ``task``: the released one first, then further ones."""
    rule = rule_of(task)
    return [rule, *(RULES[name] for name in rule.further)]


def rule_of(task: str) -> Rule:
    """The released rule of ``task``; a :class:`ConfigError` names the known tasks otherwise."""
    if task in TASK_RULES:
        return TASK_RULES[task]
    if task == "niah" or task.startswith("niah_"):
        return RULES["needle_recall"]
    way_out = f"data.rules: {{{task}: f1}}, or another rule, or a function of your own"
    raise _unknown(f"no rule scores the task {task!r}", task, [*TASK_RULES, "niah_*"], way_out)


def register(task: str, rule: str | Compare, cut: str | None = None) -> Rule:
    """Say by which rule a task of one's own is scored.

    Args:
        task: the name that its rows carry.
        rule: a name of ``RULES``; or the import path ``my_rules.brackets`` of a function
            ``(output, references) -> float`` in [0, 1]; or that function.
        cut: a name of ``CUTS``: what is cut off the output first. ``None``: what the rule cuts
            otherwise, nothing for a function.

    Returns:
        The rule as it is used from now on.

    Raises:
        ConfigError: rule or cut are not known, or the task has another rule already.
    """
    if isinstance(rule, str):
        found = _named(rule)
    else:
        found = Rule(getattr(rule, "__name__", type(rule).__name__), rule)
    if cut is not None:
        if cut not in CUTS:
            raise _unknown(f"no cut is called {cut!r}", cut, CUTS)
        found = replace(found, cut=cut)
    if not task.strip():
        raise ConfigError("the name of a task is empty")
    if task in TASK_RULES and TASK_RULES[task] != found:
        raise ConfigError(
            f"the task {task!r} has a rule already: {TASK_RULES[task].name}",
            way_out="give the task of these rows a name of its own",
        )
    TASK_RULES[task] = found
    return found


def register_rules(rules: Mapping[str, str | Mapping[str, str]]) -> None:
    """Register several tasks, as a configuration names them.

    Args:
        rules: by task a rule, or ``{rule: ..., cut: ...}``; both as in :func:`register`.

    Raises:
        ConfigError: as :func:`register`; or a key is neither of the two.
    """
    for task, given in rules.items():
        chosen = {"rule": given} if isinstance(given, str) else dict(given)
        if "rule" not in chosen or set(chosen) - {"rule", "cut"}:
            raise ConfigError(
                f"the rule of the task {task!r} is {chosen}",
                allowed="the name of a rule, or the keys rule and cut",
                way_out="{rule: f1, cut: first_line}",
            )
        register(task, **chosen)


def _named(name: str) -> Rule:
    """The rule of that name, or around the function of that import path."""
    if name in RULES:
        return RULES[name]
    module, _, function = name.rpartition(".")
    if not module:
        raise _unknown(f"no rule is called {name!r}", name, RULES)
    try:
        compare = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the rule {name!r} cannot be imported: {error}",
            allowed="the import path of a function (output, references) -> float",
            way_out="start in the folder of that file, or name a rule: " + ", ".join(RULES),
        ) from error
    if not callable(compare):
        raise ConfigError(f"the rule {name!r} is not a function but {compare!r}")
    return Rule(function, compare)


def _unknown(what: str, name: str, known: Iterable[str], way_out: str | None = None) -> ConfigError:
    near = nearest(name, known)
    what += f"; did you mean {near!r}?" if near else ""
    return ConfigError(what, allowed=", ".join(known), way_out=way_out)


def _check(response: str, references: Sequence[str]) -> None:
    if isinstance(references, str):  # would be scored letter by letter
        raise DataError(
            "references are a list of texts, not one text", way_out=f"[{references[:40]!r}]"
        )
    for what, text in (("response", response), *(("reference", r) for r in references)):
        if not isinstance(text, str):
            raise DataError(f"a {what} is text, not {type(text).__name__}: {text!r:.80}")
    if len(references) == 0:
        raise DataError(
            "a response cannot be scored without references",
            way_out="leave rows without answers out, or answer them with refine-pl predict",
        )
