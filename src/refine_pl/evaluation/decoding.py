"""How the next token is picked: the most likely one, or a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from refine_pl.evaluation.generation import Choose
from refine_pl.randomness import RowRandom
from refine_pl.rollouts.sampling import sample_tokens


def greedy(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """The most likely token of each row, ``[M]`` int64; the first one of equals."""
    return logits.argmax(-1)


def sampling(
    generator: RowRandom,
    length: int,
    *,
    copies: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Choose:
    """Samples by inverse transform, from numbers that belong to the prompt and the step.

    Hence a row draws the same tokens in any batch, and whichever other rows have finished.

    Args:
        generator: of the ``B`` prompts.
        length: steps that may be taken.
        copies: rows of each prompt.
        temperature: that logits are divided by.
        top_k: only this number of most likely tokens.
        top_p: only the most likely tokens that together have this probability.
    """
    uniform = generator.rand(length, copies).transpose(1, 2).flatten(0, 1)  # [R, length]

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        numbers = uniform[rows.cpu(), step].to(logits.device)
        return sample_tokens(narrowed(logits, temperature, top_k, top_p), numbers)

    return choose


def narrowed(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits ``[M, V]`` of the narrowed distribution: float64, ``-inf`` where nothing is left.

    ``top_p`` keeps the token that crosses it, so at least one token is left, and is measured in
    what ``top_k`` leaves.
    """
    logits = logits.double() / temperature
    if top_k is None and top_p is None:
        return logits
    # Stable: of equal tokens the first ones stay.
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    dropped = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k is not None:
        dropped[..., top_k:] = True
    if top_p is not None:
        probability = ordered.masked_fill(dropped, -torch.inf).softmax(-1)
        dropped |= probability.cumsum(-1) - probability >= top_p
    return logits.masked_fill(dropped.scatter(-1, index, dropped), -torch.inf)
