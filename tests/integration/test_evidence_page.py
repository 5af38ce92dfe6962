"""The page on evidence prints the numbers that were kept, and nothing else."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from refine_pl.comparison.records import Comparison
from refine_pl.comparison.words import MATCH
from refine_pl.training.record_files import read_record

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
ARMS, SEEDS, TABLES = 11, 3, 3


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("evidence_page", DOCS / "evidence_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found():
    return read_record(DOCS / "evidence.json", Comparison)


def numbers(text):
    return re.findall(r"[+-]\d+\.\d+ \[[+-]\d+\.\d+, [+-]\d+\.\d+\]", text)


def test_whole(found):
    assert len(found.arms) == ARMS
    assert len(found.seeds) == SEEDS
    assert all(len(arm.temperatures) == SEEDS for arm in found.arms)
    assert all(arm.measures and arm.control for arm in found.arms)
    assert [arm.arm for arm in found.arms if arm.longer_measures] == ["refine"]


def test_tables_are_those_of_the_numbers(maker, found):
    text = (DOCS / "evidence.md").read_text()
    assert text.count("by evidence_page.py") == TABLES
    assert maker.page(text, found) == text
    assert len(numbers(text)) >= 7 * ARMS


def test_other_numbers_make_another_page(maker, found):
    text = (DOCS / "evidence.md").read_text()
    first = found.arms[0]
    for name in ("measures", "control", "longer_measures"):
        moved = [
            dataclasses.replace(m, difference=m.difference + 0.01) if m.name == MATCH else m
            for m in getattr(first, name)
        ]
        arms = [dataclasses.replace(first, **{name: moved}), *found.arms[1:]]
        assert maker.page(text, dataclasses.replace(found, arms=arms)) != text


def test_what_is_quoted_stands_in_a_table(maker, found):
    tables = " ".join(table(found) for table in (maker.trained, maker.beyond, maker.longer))
    quoted = 0
    for file in (README, DOCS / "evidence.md"):
        prose = "\n".join(line for line in file.read_text().splitlines() if line[:1] != "|")
        for number in numbers(re.sub(r"\s+", " ", prose)):
            assert number in tables, f"{file.name}: {number}"
            quoted += 1
    assert quoted >= 2


def test_the_plot_has_both_intervals_of_every_arm(maker, found):
    intervals = maker.picture(found).options["intervals"]
    assert [i.row for i in intervals] == [row for row in range(ARMS) for _ in range(2)]
    assert all(i.low <= i.middle <= i.high for i in intervals)
    assert (DOCS / "images" / "evidence.png").stat().st_size > 5000
