"""What lies between LaCT's products by Triton kernels: one launch each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refine_kernels.launching import launch
from refine_kernels.power_of_two import power_of_two

MAX_INNER = 8192  # inner width, of which a program holds a whole row
_ELEMENTS = 1024  # that a program takes at least. Not timed on a GPU


def _start(name: str, inner: int, per_token: bool | None = None, **arguments: Any) -> None:
    """One launch of the kernel called ``name``, over rows of width ``inner``."""
    from refine_kernels.lact_update import kernels

    block, rows = power_of_two(inner), len(next(iter(arguments.values())))
    at_once = max(1, _ELEMENTS // block)
    constants: dict[str, Any] = {"H": inner, "BH": block, "ROWS": at_once}
    if per_token is not None:
        constants["RATES"] = per_token
    options = {"num_warps": min(16, max(4, block // 256)), "num_stages": 1}
    kernel = getattr(kernels, name)
    launch(kernel, (-(-rows // at_once),), arguments | {"N": rows}, constants, options)


def hidden(ab: Tensor) -> Tensor:
    """See :class:`refine_kernels.lact_update.stacked.StackedTerms`."""
    inner = ab.shape[1] // 2
    y = ab.new_empty(len(ab), inner)
    _start("fast_hidden", inner, ab=ab, y=y)
    return y


def hidden_backward(ab: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor]:
    """See :class:`refine_kernels.lact_update.stacked.StackedTerms`."""
    d_ab, y = torch.empty_like(ab), torch.empty_like(d_hidden)
    _start("fast_hidden_back", d_hidden.shape[1], ab=ab, d_y=d_hidden, d_ab=d_ab, y=y)
    return d_ab, y


def written(ab: Tensor, e: Tensor, rates: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """See :class:`refine_kernels.lact_update.stacked.StackedTerms`."""
    m02, m1 = torch.empty_like(ab), torch.empty_like(e)
    _start("fast_written", e.shape[1], not per_channel, ab=ab, e=e, rates=rates, m02=m02, m1=m1)
    return m02, m1


def written_backward(
    ab: Tensor, e: Tensor, x02: Tensor, x1: Tensor, rates: Tensor, per_channel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`refine_kernels.lact_update.stacked.StackedTerms`."""
    four, two = ab.new_empty(len(ab), 4 * e.shape[1]), torch.empty_like(ab)
    d_rates = torch.empty_like(rates)
    _start(
        "fast_written_back", e.shape[1], not per_channel, ab=ab, e=e, x02=x02, x1=x1, rates=rates,
        four=four, two=two, d_rates=d_rates,
    )  # fmt: skip
    return four, two, d_rates
