"""What is compiled ahead of time: each operation's calls at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from refine_kernels.backends import triton_version
from refine_kernels.delta_rule.forks_op import TritonForks
from refine_kernels.delta_rule.kernel_trail import delta_rule_triton
from refine_kernels.row_cases import ROW_CASES
from refine_kernels.token_stats.kernel_op import TritonTokenStats

LENGTH = 4096


def _delta_rule(decay: bool, widths: tuple[int, int], device: torch.device) -> None:
    """Forward and backward, with a coarse trail and with positions given."""
    heads, (keys, values) = 4, widths

    def draw(width: int) -> Tensor:
        x = torch.empty(1, LENGTH, heads, width, dtype=torch.bfloat16, device=device)
        return x.requires_grad_()

    q, k, v = draw(keys), draw(keys), draw(values)
    beta = torch.empty(1, LENGTH, heads, device=device, requires_grad=True)
    g = torch.empty(1, LENGTH, heads, device=device, requires_grad=True) if decay else None
    initial = torch.empty(1, heads, keys, values, device=device)
    positions = torch.empty(1, 8, dtype=torch.int64, device=device)
    for keep in (True, False):
        output, state, trail = delta_rule_triton(
            q, k, v, beta, g, initial, keys**-0.5, True, keep, 64, positions
        )
        assert trail is not None
        (output.sum() + state.sum() + trail.at(positions).sum()).backward()


def _forks(
    copies: int, tokens: int, earlier: int, widths: tuple[int, int], decay: bool,
    device: torch.device,
) -> None:  # fmt: skip
    """Forward and backward; with earlier writes also from what later calls need."""
    states, heads, (keys, values) = 8, 4, widths

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device, requires_grad=True)

    q, k, v = (
        draw(states * copies, tokens, heads, width, dtype=torch.bfloat16)
        for width in (keys, keys, values)
    )
    of_token, of_write = (states * copies, tokens, heads), (states, heads, copies, earlier)
    state: list[Tensor | None] = [draw(states, heads, keys, values), None, None, None]
    if earlier:
        state[1:] = draw(*of_write, keys), draw(*of_write, values)
        state.append(draw(*of_write) if decay else None)
    output, *after = TritonForks.apply(
        q, k, v, draw(*of_token, dtype=torch.bfloat16), draw(*of_token) if decay else None,
        *state, (copies, keys**-0.5, True),
    )  # fmt: skip
    loss = output.sum()
    if earlier:
        loss = loss + sum(x.sum() for x in after if x is not None)
    loss.backward()


def _token_stats(vocab_size: int, device: torch.device) -> None:
    hidden = torch.empty(LENGTH, 2048, dtype=torch.bfloat16, device=device, requires_grad=True)
    weight = torch.empty(vocab_size, 2048, device=device, requires_grad=True)
    targets = torch.empty(LENGTH, dtype=torch.int64, device=device)
    logprob, entropy, _ = TritonTokenStats.apply(
        hidden, weight, targets, True, True, torch.bfloat16
    )
    (logprob.sum() + entropy.sum()).backward()


# Forks of each state, tokens, writes before them, widths, decay.
_FORKS = {
    "8 forks of 5 tokens, 128 x 128": (8, 5, 0, (128, 128), True),
    "8 forks of 5 tokens, 96 x 192": (8, 5, 0, (96, 192), True),
    "8 forks of 5 tokens, 256 x 512": (8, 5, 0, (256, 512), True),
    "8 forks, token by token": (8, 1, 9, (128, 128), True),
    "1 fork of 20 tokens": (1, 20, 0, (128, 128), True),
}

CASES: dict[str, Callable[[torch.device], None]] = {
    f"delta_rule{', decay' if decay else ''}, {keys} x {values}": partial(
        _delta_rule, decay, (keys, values)
    )
    for decay in (False, True)
    for keys, values in ((64, 64), (128, 128), *(((96, 192), (256, 512)) if decay else ()))
} | ROW_CASES
CASES |= {f"delta_rule_shared, {name}": partial(_forks, *case) for name, case in _FORKS.items()}
CASES |= {f"token_stats, {size} words": partial(_token_stats, size) for size in (32000, 151936)}

# Bytes that a kernel may spill, stores and loads, with this Triton; of all its variants, or of
# those with the constant that is named. Of more than 16 tokens of a fork all pairs are held in
# float32 beside the state. Keys of 96 channels are held as 128, with a mask.
KNOWN_SPILLS_OF = "3.9"
KNOWN_SPILLS = {
    ("outputs", "sm_80", "K=96"): 16,
    ("pairs_back", "sm_80", "K=96"): 24,
    ("queries_keys_back", "sm_80", "K=96"): 40,
    ("queries_keys_back", "sm_100", "K=64"): 8,
    ("forks", "sm_80", "TP=32"): 40,
    ("forks", "sm_90", "TP=32"): 32,
    ("forks", "sm_100", "TP=32"): 56,
    ("forks_states_back", "sm_90", "TP=32"): 36,
    ("forks_states_back", "sm_100", "TP=32"): 24,
}
# With the others, from 3.3 on: registers are shared out anew in every release.
SPILLS_OF_OTHERS = 256


def known_spills(kernel: str, chip: str, variant: str) -> int:
    """Bytes that are no news, with the Triton that is installed."""
    known = max(KNOWN_SPILLS.get((kernel, chip, part), 0) for part in ("", *variant.split()))
    if triton_version().startswith(f"{KNOWN_SPILLS_OF}."):
        return known
    return max(known, SPILLS_OF_OTHERS)
