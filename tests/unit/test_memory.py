"""Counting the memory of tensors."""

import torch

from refine_pl.benchmark.memory import PeakMemory


def test_peak_counts_what_is_alive_at_once():
    before = torch.ones(1000)
    with PeakMemory() as memory:
        a = torch.zeros(1000)  # 4 kB
        b = a + before  # 8 kB
        del a
        c = b * 2  # 8 kB
        d = c.view(10, 100)  # a view makes nothing
        c += 1
        del b, c
        e = torch.zeros(500)  # 6 kB
    assert memory.peak_bytes == 8000
    assert memory.largest_elements == 1000
    assert d.numel() + e.numel() == 1500


def test_saved_tensors_of_autograd_count():
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory() as kept:
        y = x.exp()
        z = y.sin()
        z.sum().backward()
    with PeakMemory() as freed, torch.no_grad():
        x.exp().sin_()
    assert kept.peak_bytes >= 3 * 4000
    assert freed.peak_bytes == 4000
