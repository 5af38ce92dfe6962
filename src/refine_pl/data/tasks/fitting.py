"""How much text fits a number of tokens, by counting the tokens of the whole text.

Tokenizers merge over the borders of pieces, so the counts of pieces cannot be added up.
"""

from __future__ import annotations

from collections.abc import Callable

from refine_pl.tokenizers import Tokenizer


def fill(
    tokenizer: Tokenizer, text: Callable[[int], str], limit: int, upper: int, guess: int
) -> tuple[str, int]:
    """The text with as many pieces as fit, and their number.

    Args:
        tokenizer: counts.
        text: with a number of pieces.
        limit: the most tokens; the text without pieces has no more.
        upper: the most pieces.
        guess: of their number, where the search begins.
    """
    number = most_that_fits(lambda n: len(tokenizer.encode(text(n))), limit, upper, guess)
    return text(number), number


def most_that_fits(measure: Callable[[int], int], limit: int, upper: int, guess: int = 1) -> int:
    """The number ``n`` of pieces that fits while ``n + 1`` does not, or ``upper`` if that fits.

    Args:
        measure: tokens of the text with ``n`` pieces; ``measure(0)`` is at most ``limit``.
        limit: the most tokens.
        upper: the most pieces.
        guess: where the search begins; it decides how long it takes, nothing else.
    """
    fits, size = 0, measure(0)
    too_many = upper + 1
    probe = guess
    rounds = 0
    while too_many - fits > 1:
        probe = min(max(probe, fits + 1), too_many - 1)
        tokens = measure(probe)
        rate = max(1e-9, (tokens - size) / (probe - fits))
        if tokens <= limit:
            fits, size = probe, tokens
        else:
            too_many = probe
        rounds += 1
        # Pieces differ in length: halving now and then bounds the number of rounds.
        halve = rounds % 4 == 0 and too_many <= upper
        probe = (fits + too_many) // 2 if halve else fits + int(min((limit - size) / rate, upper))
    return fits
