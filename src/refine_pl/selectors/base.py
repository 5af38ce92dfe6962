"""What every position selector shares: the candidates, the segments and the smoothing.

Letters: ``B`` sequences, ``T`` tokens, ``S`` segments per sequence, ``M`` tokens of the longest
segment that a row of ``T`` tokens can have, ``L`` rollout tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from refine_kernels.host import to_device
from refine_pl.randomness import RowRandom
from refine_pl.records import Positions, RolloutPlan


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens of each segment, and which of them may be a position."""

    index: Tensor  # [B, S, M] int64, ascending; after the end of its segment it is not legal
    legal: Tensor  # [B, S, M] bool
    score: Tensor  # [B, S, M] float64, smoothed entropy in nats; finite where legal

    def at(self, slot: Tensor) -> Positions:
        """The positions at ``slot [B, S]`` of each segment; a segment without candidates has none.

        ``slot`` must be a legal one where the segment has any.
        """
        valid = self.legal.any(dim=-1)
        index = self.index.gather(-1, slot.unsqueeze(-1)).squeeze(-1)
        return Positions(index.where(valid, 0), valid)

    def draw(self, weight: Tensor, generator: RowRandom) -> Positions:
        """One position per segment, with probability proportional to ``weight`` where legal.

        By inverse CDF from one uniform number per segment, so that a row draws the same position
        whatever it is padded to.

        Args:
            weight: ``[B, S, M]`` float64, not negative, and positive somewhere in each segment that
                has a candidate; what it holds where not legal is not read.
            generator: the rows' random streams; ``S`` numbers of each are used.
        """
        uniform = generator.rand(weight.shape[1])
        # On the CPU, because a parallel scan rounds differently for another length, and CUDA's has
        # no deterministic version.
        cdf = weight.where(self.legal, 0.0).cpu().cumsum(dim=-1)
        slot = (cdf > uniform.unsqueeze(-1) * cdf[..., -1:]).to(torch.uint8).argmax(dim=-1)
        return self.at(to_device(slot, weight.device))


def smooth(entropy: Tensor, num_tokens: Tensor, rollout_length: int) -> Tensor:
    """Centred moving average of width L (L + 1 if L is even) over the real tokens of each row.

    Windows at the ends of a row average the real tokens that they contain.

    Args:
        entropy: ``[B, T]`` nats; what comes after ``num_tokens`` is not read.
        num_tokens: ``[B]`` real tokens of each row.
        rollout_length: L, tokens.

    Returns:
        ``[B, T]`` float64, nats; 0 after ``num_tokens``.
    """
    half = rollout_length // 2
    time = torch.arange(entropy.shape[1], device=entropy.device)
    end = num_tokens.unsqueeze(-1)
    real = time < end
    values = entropy.double()
    padded = F.pad(values.where(real, 0.0), (half, half))
    # A loop of shifted sums adds in the same order whatever the padding; a cumulative sum and a
    # convolution may not, and a last bit can change a draw.
    total = torch.zeros_like(values)
    for shift in range(2 * half + 1):
        total += padded[:, shift : shift + entropy.shape[1]]
    first = (time - half).clamp_min(0)
    last = torch.minimum(time + half, end - 1)
    mean = total / (last - first + 1).clamp_min(1)
    return mean.where(real, 0.0)


def segment_bounds(num_tokens: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Where the S segments of each row begin and end.

    Segments have ``num_tokens // S`` tokens; the remainder belongs to the last one.

    Args:
        num_tokens: ``[B]`` real tokens of each row.
        num_segments: S.

    Returns:
        ``start`` and ``stop``, ``[B, S]`` int64: a segment is ``x[start .. stop-1]``.
    """
    length = (num_tokens // num_segments).unsqueeze(-1)
    start = torch.arange(num_segments, device=num_tokens.device) * length
    stop = torch.cat([start[:, 1:], num_tokens.unsqueeze(-1)], dim=-1)
    return start, stop


class PositionSelector(nn.Module, ABC):
    """Chooses where rollouts start.

    Args:
        min_prefix: tokens that must lie before a position.
        min_suffix: tokens that must lie at and after a position.
        offset: 0 when the first rollout token is the one whose entropy was scored (the released
            code); 1 starts one token later (paper, Eq. 5).
    """

    def __init__(
        self,
        min_prefix: PositiveInt = 20,
        min_suffix: PositiveInt = 20,
        offset: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.min_prefix = min_prefix
        self.min_suffix = min_suffix
        self.offset = offset

    one_per_segment = True  # whether the plan's segments decide how many positions there are

    def count(self, num_tokens: int, plan: RolloutPlan) -> int:
        """How many positions a row of ``num_tokens`` tokens gets."""
        index, total = torch.arange(num_tokens), torch.tensor(num_tokens)
        start, stop = (bound[0] for bound in segment_bounds(total[None], plan.num_segments))
        inside = (index >= start[:, None]) & (index < stop[:, None])
        return int((inside & self.legal(index, total, plan)).any(-1).sum())

    @abstractmethod
    def select(
        self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan, generator: RowRandom
    ) -> Positions:
        """Choose positions.

        Args:
            entropy: ``[B, T]`` nats; ``entropy[b, t]`` is that of the token after ``x[0..t]``.
                Finite for real tokens; what comes after them may be NaN and changes nothing.
            num_tokens: ``[B]`` real tokens of each row.
            plan: how many segments, and the rollout length in tokens.
            generator: the rows' random streams.

        Returns:
            Positions ``[B, S]`` on the device of ``entropy``; the valid ones of a row are in
            ascending order, the others are 0.
        """

    def legal(self, index: Tensor, num_tokens: Tensor, plan: RolloutPlan) -> Tensor:
        """Whether rollouts may start at ``index`` (int64) in rows of ``num_tokens``: bool.

        Both arguments broadcast against each other. A whole target must follow a position, and its
        score must exist.
        """
        earliest = max(self.min_prefix, 1 + self.offset)
        suffix = max(self.min_suffix, plan.rollout_length)
        return (index >= earliest) & (num_tokens - index >= suffix)

    def candidates(self, entropy: Tensor, num_tokens: Tensor, plan: RolloutPlan) -> Candidates:
        """The tokens of each segment with their scores; arguments as in :meth:`select`."""
        num_tokens = num_tokens.to(entropy.device)
        padded_length = entropy.shape[1]
        num_segments = plan.num_segments
        start, stop = segment_bounds(num_tokens, num_segments)
        # A bound for every row, so that the device need not be asked how long the longest one is.
        width = min(padded_length, padded_length // num_segments + num_segments - 1)
        index = start.unsqueeze(-1) + torch.arange(width, device=entropy.device)
        legal = (index < stop.unsqueeze(-1)) & self.legal(index, num_tokens[:, None, None], plan)
        scored = (index - 1 - self.offset).clamp(0, padded_length - 1)
        smoothed = smooth(entropy, num_tokens, plan.rollout_length)
        score = smoothed.gather(-1, scored.flatten(1)).view_as(index)
        return Candidates(index, legal, score)
