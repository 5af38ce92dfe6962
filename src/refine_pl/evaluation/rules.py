"""How an output is cut, and how what is left is compared with the references.

Every function here is pure. ``cut(output) -> str``; ``compare(output, references) -> float`` in
[0, 1], where the references are not empty and their order does not matter.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from refine_pl.errors import DataError

Cut = Callable[[str], str]
Compare = Callable[[str, Sequence[str]], float]

# The classes of the task trec, as the benchmark spells them. No name is part of another one.
_TREC = """
Abbreviation; Animal; City; Color; Country; Currency name; Date; Definition of something;
Description of a person; Description of something; Disease and medicine; Distance, linear measure;
Element and substance; Equivalent term; Event; Expression abbreviated; Food;
Group or organization of person; Individual; Invention, book and other creative piece; Language;
Lasting time of somethin; Letter like a-z; Manner of an action; Mountain; Musical instrument;
Number of something; Order, rank; Organ of body; Other entity; Other location; Other number;
Percent, fraction; Plant; Postcode or other code; Price; Product; Reason; Religion;
Size, area and volume; Speed; Sport; State; Symbols and sign; Techniques and method; Temperature;
Title of a person; Vehicle; Weight; Word with a special property
"""
TREC_CLASSES = tuple(name.strip() for name in _TREC.split(";"))


# What is cut


def whole(output: str) -> str:
    """The output as it is."""
    return output


def first_line(output: str) -> str:
    """What is before the first newline, stripped; empty if the output begins with one."""
    return output.split("\n", 1)[0].strip()


def first_line_after_newlines(output: str) -> str:
    """The first line, stripped, once the newlines at the start are gone."""
    return first_line(output.lstrip("\n"))


def cleaned(output: str) -> str:
    """The output stripped, its control characters made newlines, stripped again."""
    return re.sub(r"[\x00-\x1f]", "\n", output.strip()).strip()


def first_line_cleaned(output: str) -> str:
    """The first line of the output (cut before anything is stripped), cleaned."""
    return cleaned(first_line(output))


def line_of_code(output: str) -> str:
    """The first line, after newlines at the start, without a backtick, ``#`` or ``//``.

    If every line has one, the whole output.
    """
    lines = output.lstrip("\n").split("\n")
    return next((x for x in lines if not any(mark in x for mark in ("`", "#", "//"))), output)


_CUTS = (whole, first_line, first_line_after_newlines, cleaned, first_line_cleaned, line_of_code)
CUTS: dict[str, Cut] = {cut.__name__: cut for cut in _CUTS}


# What is compared


def best(one: Callable[[str, str], float], output: str, references: Sequence[str]) -> float:
    """The highest score that a reference gives under ``one(output, reference) -> float``."""
    return max(one(output, reference) for reference in references)


def _contained(output: str, references: Sequence[str]) -> list[bool]:
    if not all(references):
        raise DataError(
            "an empty reference is contained in every output",
            way_out="leave rows without an answer out, or score them by exact_match",
        )
    output = output.lower()
    return [reference.lower() in output for reference in references]


def contains_any(output: str, references: Sequence[str]) -> float:
    """1 if the output contains a reference, whatever the case."""
    return float(any(_contained(output, references)))


def recall(output: str, references: Sequence[str]) -> float:
    """Fraction of the references that the output contains, whatever the case."""
    return sum(_contained(output, references)) / len(references)


def exact_match(output: str, reference: str) -> float:
    """1 if both are the same but for white space at their ends."""
    return float(output.strip() == reference.strip())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized_words(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and without the articles a, an, the."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return re.sub(r"\b(?:a|an|the)\b", " ", text).split()


def f1(output: str, reference: str) -> float:
    """F1 of the two bags of normalized words; 0 if they share none, also if both are empty."""
    here, there = normalized_words(output), normalized_words(reference)
    shared = sum((Counter(here) & Counter(there)).values())
    if not shared:
        return 0.0
    precision, share = shared / len(here), shared / len(there)
    return 2 * precision * share / (precision + share)


def classification(output: str, reference: str, classes: Sequence[str] = TREC_CLASSES) -> float:
    """1 / number of classes that the output names, if the reference is among them; else 0.

    Names that are part of the reference, but not all of it, are dropped first, from the list that
    is being walked: of two such names in a row the second one stays, as the benchmark has it.
    """
    named = [name for name in classes if name in output]
    for name in named:
        if name in reference and name != reference:
            named.remove(name)
    return 1 / len(named) if reference in named else 0.0


def code_similarity(output: str, reference: str) -> float:
    """Twice the matching characters over all of them, in steps of 0.01.

    As the standard library's ``SequenceMatcher`` finds them: it matches neither the longest nor the
    fewest blocks, and ignores frequent characters of references of 200 or more.
    """
    return round(100 * difflib.SequenceMatcher(None, output, reference).ratio()) / 100


def edit_similarity(output: str, reference: str) -> float:
    """Twice the matching characters over all of them, by ``SequenceMatcher`` without its junk."""
    return difflib.SequenceMatcher(None, output, reference, autojunk=False).ratio()


def _share_of_numbers(output: str, number: str) -> float:
    numbers = re.findall(r"\d+", output)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def count(output: str, reference: str) -> float:
    """Fraction of the numbers in the output that are the reference, as written."""
    return _share_of_numbers(output, reference)


def retrieval(output: str, reference: str) -> float:
    """Fraction of the numbers in the output that are that of the reference ``Paragraph 17``."""
    found = re.search(r"Paragraph (\d+)", reference)
    if found is None:
        raise DataError(
            f"the reference {reference!r} names no paragraph", allowed="Paragraph and a number"
        )
    return _share_of_numbers(output, found[1])
