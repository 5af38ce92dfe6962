"""The temperature control: the baseline at the temperature of equal next-token loss.

Training that sharpens a distribution raises the exact match and the next-token loss. Dividing the
logits of the baseline by a temperature below 1 does that too, and costs nothing. What an arm has
beyond the baseline at the temperature that gives the arm's next-token loss is not sharpening.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from refine_pl.backbones.base import FastWeightLM
from refine_pl.losses import ntp_targets
from refine_pl.records import Batch
from refine_pl.refine_step import RefineStep
from refine_pl.training.run_folder import HeldOut
from refine_pl.training.sizes import cut
from refine_pl.training.validation import Validation
from refine_pl.training.validation_plan import ValidationPlan

GRID = tuple(round(1 - 0.025 * i, 3) for i in range(25))  # 1 to 0.4

Losses = dict[str, list[list[float]]]  # by document: of each sequence, at each temperature


class Baseline:
    """A trained model that is measured at other temperatures.

    Args:
        policy: the model.
        frozen: by which rollouts are judged.
        step: its rewards.
        plan: of validation.
        batches: reads the held-out sequences anew.
        microbatch_size: rows of a forward pass.
        context: around every forward pass.
    """

    def __init__(
        self,
        policy: FastWeightLM,
        frozen: FastWeightLM | None,
        step: RefineStep,
        plan: ValidationPlan,
        batches: Callable[[], Iterable[Batch]],
        microbatch_size: int,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.policy, self.frozen, self.step = policy, frozen, step
        self.plan, self.batches, self.context = plan, batches, context
        self.microbatch_size = microbatch_size
        self._losses: list[float] | None = None

    @torch.inference_mode()
    def losses(self) -> list[float]:
        """Its next-token loss at every temperature of the grid, mean over documents."""
        if self._losses is None:
            found: Losses = {}
            with self.context():
                for batch in self.batches():
                    for rows in cut(batch.to(self._device), self.microbatch_size):
                        self._add(rows, found)
            means = [np.mean(values, axis=0) for values in found.values()]
            self._losses = np.mean(means, axis=0).tolist()
        return self._losses

    def _add(self, batch: Batch, found: Losses) -> None:
        hidden = self.policy(batch.tokens, batch.num_tokens).hidden.flatten(0, 1)
        targets = ntp_targets(batch)
        count = (targets >= 0).sum(1).double()
        rows = []
        for temperature in GRID:
            logprob = self.policy.head(hidden / temperature, targets.flatten()).logprob
            real = logprob.view(targets.shape).where(targets >= 0, 0)
            rows.append((-real.double().sum(1) / count).tolist())
        for row, losses in enumerate(zip(*rows, strict=True)):
            name = batch.documents[row] if batch.documents else str(batch.rows[row])
            found.setdefault(name, []).append(list(losses))

    def temperature_of(self, ntp_loss: float) -> float:
        """The temperature, at most 1, at which its next-token loss is ``ntp_loss``."""
        return equal_loss(GRID, self.losses(), ntp_loss)

    @torch.inference_mode()
    def measured_at(self, temperature: float) -> list[HeldOut]:
        """Every held-out sequence, measured at a temperature."""
        plan = replace(self.plan, temperature=temperature)
        validation = Validation(self.policy, self.step, plan, self.microbatch_size, self.frozen)
        with self.context():
            for batch in self.batches():
                validation.add_sequences(batch.to(self._device))
        validation.means(self._device, lambda values: values)
        return sorted(validation.rows, key=lambda row: row.row)

    @property
    def _device(self) -> torch.device:
        return next(self.policy.parameters()).device


def equal_loss(temperatures: Iterable[float], losses: Iterable[float], wanted: float) -> float:
    """The temperature below that of the lowest loss at which the loss is ``wanted``.

    Args:
        temperatures: falling, from 1.
        losses: at each.
        wanted: a loss; one that is below all gives the temperature of the lowest, one above all the
            last temperature.

    Returns:
        Interpolated by a parabola through the three nearest points.
    """
    x, y = np.array(list(temperatures)), np.array(list(losses))
    best = int(y.argmin())
    if wanted <= y[best]:
        return float(x[best])
    above = np.flatnonzero(y[best:] >= wanted)
    if not above.size:
        return float(x[-1])
    right = best + int(above[0])  # the loss is reached between right - 1 and right
    first = min(max(right - 1, 0), len(x) - 3)
    curve = np.polyfit(x[first : first + 3], y[first : first + 3] - wanted, 2)
    roots = [r.real for r in np.roots(curve) if abs(r.imag) < 1e-9]
    inside = [r for r in roots if x[right] - 1e-9 <= r <= x[right - 1] + 1e-9]
    if not inside:
        share = (wanted - y[right - 1]) / (y[right] - y[right - 1])
        return float(x[right - 1] + share * (x[right] - x[right - 1]))
    return float(inside[0])
