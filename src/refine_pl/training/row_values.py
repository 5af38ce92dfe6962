"""Numbers of single sequences, beside the sums over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from refine_pl.records import Batch, Rollouts
from refine_pl.training.run_folder import HeldOut
from refine_pl.training.tally import Tally

_DIGITS = 7  # after the point
_PREFIX = 48  # tokens that are shown before a rollout


def as_numbers(tokens: Sequence[int]) -> str:
    """Tokens without a tokenizer."""
    return " ".join(map(str, tokens))


class RowValues:
    """What is measured of the rows of a batch.

    Args:
        tally: gets every number too.
        batch: ``B`` sequences.
    """

    def __init__(self, tally: Tally, batch: Batch) -> None:
        self.tally, self.batch = tally, batch
        self._means: dict[str, list[float]] = {}
        self._counts: list[int] = [0] * len(batch)
        self._by_token: list[list[float]] = [[] for _ in range(len(batch))]
        self._rollouts: Rollouts | None = None

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add the entries of ``values [B, ...]`` where ``mask``, of the same shape, is true.

        A row without such entries gets no mean.
        """
        values = values.double()
        self.tally.add_values(name, values[mask])
        count = mask.flatten(1).sum(1)
        mean = values.where(mask, 0).flatten(1).sum(1) / count
        self._means[name] = mean.tolist()

    def keep_rollouts(self, rollouts: Rollouts, expected: Tensor) -> None:
        """Keep how the match falls along rollouts, and one of them to look at.

        Args:
            rollouts: of these rows.
            expected: ``[B, S, N, L]`` the probability of each true token.
        """
        self._rollouts = rollouts
        self._counts = rollouts.valid.sum(1).tolist()
        mask = rollouts.loss_mask
        total = expected.double().where(mask, 0).sum((1, 2))
        self._by_token = (total / mask.sum((1, 2)).clamp(min=1)).tolist()

    def records(self, decode: Callable[[list[int]], str]) -> Iterator[HeldOut]:
        """What is kept of each row.

        Args:
            decode: makes a text of tokens.
        """
        batch = self.batch
        for row, number in enumerate(batch.rows):
            means = {name: mean[row] for name, mean in self._means.items()}
            positions = self._counts[row]
            prefix, target, rollout = map(decode, self._sample(row) if positions else ([], [], []))
            yield HeldOut(
                row=int(number),
                document=batch.documents[row] if batch.documents else f"row {number}",
                num_tokens=int(batch.num_tokens[row]),
                positions=positions,
                values={n: round(v, _DIGITS) for n, v in means.items() if v == v},
                match_by_token=[round(v, _DIGITS) for v in self._by_token[row] if positions],
                prefix=prefix,
                target=target,
                rollout=rollout,
            )

    def _sample(self, row: int) -> tuple[list[int], list[int], list[int]]:
        """Prefix, target and the first rollout from the position in the middle."""
        rollouts = self._rollouts
        assert rollouts is not None
        valid = rollouts.valid[row].nonzero().flatten().tolist()
        s = valid[len(valid) // 2]
        start = int(rollouts.positions.index[row, s])
        before = self.batch.tokens[row, max(0, start - _PREFIX) : start]
        drawn = rollouts.tokens[row, s, 0]
        return before.tolist(), rollouts.targets[row, s].tolist(), drawn.tolist()


def all_records(records: list[HeldOut], processes: int) -> list[HeldOut]:
    """The records of all processes in the order of their rows; all must call it."""
    if processes > 1 and torch.distributed.is_initialized():
        found: list[list[HeldOut]] = [[] for _ in range(processes)]
        torch.distributed.all_gather_object(found, records)
        records = [record for some in found for record in some]
    return sorted(records, key=lambda record: record.row)
