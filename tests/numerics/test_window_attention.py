"""Sliding-window attention in blocks against a mask over all pairs; what its memory grows with."""

import pytest
import torch

from refine_kernels.window_attention import blocked, prefixes, products, window_attention
from refine_kernels.window_attention.reference import window_attention_reference
from refine_pl.benchmark.memory import PeakMemory


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "MIN_BLOCK", 3)
    monkeypatch.setattr(blocked, "MAX_BLOCK", 7)


def draw(batch, length, seed=0, heads=2, width=4):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, length, heads, width)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return [y.requires_grad_() for y in x.unbind(0)]


@pytest.mark.parametrize("window", [1, 2, 5, 16, 40, 100])
@pytest.mark.parametrize("length", [1, 6, 7, 40])
@pytest.mark.usefixtures("small_blocks")
def test_equals_the_masked_form(window, length):
    inputs = draw(2, length)
    got, _ = window_attention(*inputs, window)
    expected = window_attention_reference(*inputs, window)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad(expected.sin().sum(), inputs)
    actual = torch.autograd.grad(got.sin().sum(), inputs)
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("window", [1, 4, 9, 60])
@pytest.mark.parametrize("length", [1, 21])
@pytest.mark.parametrize("in_place", [0, 2**30])
@pytest.mark.usefixtures("small_blocks")
def test_rows_continue_and_forks_share(window, length, in_place, monkeypatch):
    """After any prefix, at once or a few tokens at a time, with the gradients into the prefix."""
    monkeypatch.setattr(products, "IN_PLACE", in_place)
    q, k, v = draw(2, 30 + length)
    expected = window_attention_reference(q, k, v, window)
    _, trail = window_attention(q[:, :30], k[:, :30], v[:, :30], window)
    positions = torch.tensor([[0, 3, 30], [7, 29, 30]])
    state = trail.at(positions)
    rows = torch.arange(2).repeat_interleave(3)
    index = positions.flatten()[:, None] + torch.arange(length)
    new = [x[rows[:, None], index] for x in (q, k, v)]
    wanted = expected[rows[:, None], index]
    whole, _ = window_attention(*new, window, state)
    torch.testing.assert_close(whole, wanted, rtol=1e-10, atol=1e-12)

    new = [x.repeat_interleave(2, 0) for x in new]

    def in_pieces(forked):
        outputs = []
        for piece in zip(*(x.split(2, 1) for x in new), strict=True):
            output, forked = forked.attend(*piece)
            outputs.append(output)
        return torch.cat(outputs, 1)

    shared = in_pieces(state.fork(2))
    forks = wanted.repeat_interleave(2, 0)
    torch.testing.assert_close(shared, forks, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for drawn in (state.fork(2), state.fork(2).gathered(), state.fold().fork(2)):
            torch.testing.assert_close(in_pieces(drawn), forks, rtol=1e-10, atol=1e-12)
    expected_gradients = torch.autograd.grad(2 * wanted.sin().sum(), (k, v), retain_graph=True)
    for got, times in ((whole, 2), (shared, 1)):
        found = torch.autograd.grad(times * got.sin().sum(), (k, v), retain_graph=True)
        for a, b in zip(found, expected_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("gathered", "in_place"), [(1, 0), (200, 0), (2**20, 2**30)])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("uses", ["read", "fold", "read fold read", "read output", "output"])
def test_gradients_that_wait_for_the_pass_of_the_keys(
    gathered, in_place, copies, uses, monkeypatch
):
    """Windows read any number of times, gathered one, some or all at a time, and copied."""
    monkeypatch.setitem(prefixes.GATHERED, "cpu", gathered)
    monkeypatch.setattr(products, "IN_PLACE", in_place)
    q, k, v = draw(2, 25, seed=len(uses))
    output, trail = window_attention(q, k, v, 6)
    positions = torch.tensor([[4, 4, 17], [25, 0, 11]])
    asked, own_k, own_v = draw(6 * copies, 2, seed=3)
    row = torch.arange(2).repeat_interleave(3)
    state = trail.at(positions)
    loss = expected = 0 * k.sum()
    for i, use in enumerate(uses.split(), 1):
        if use == "output":
            loss = loss + i * output.sin().sum()
            expected = expected + i * window_attention_reference(q, k, v, 6).sin().sum()
        if use == "fold":
            folded = state.fold().source
            shown = folded.keys.new_zeros(6, 5, 1, 1)  # those that are real
            for n, end in enumerate(positions.flatten().tolist()):
                shown[n, 5 - min(end, 5) :] = 1
                first = max(end - 5, 0)
                expected = expected + i * k[row[n], first:end].cos().sum()
                expected = expected + i * v[row[n], first:end].sin().sum()
            loss = loss + i * (folded.keys.cos() * shown).sum()
            loss = loss + i * (folded.values.sin() * shown).sum()
        if use == "read":
            loss = loss + i * state.fork(copies).attend(asked, own_k, own_v)[0].sin().sum()
            for n, end in enumerate(positions.flatten().repeat_interleave(copies).tolist()):
                before = [x[row[n // copies], :end] for x in (q, k, v)]
                each = zip(before, (asked[n], own_k[n], own_v[n]), strict=True)
                whole = window_attention_reference(*(torch.cat(x)[None] for x in each), 6)
                expected = expected + i * whole[0, end:].sin().sum()
    inputs = (k, v, asked, own_k, own_v, q)
    wanted = torch.autograd.grad(expected, inputs, allow_unused=True, retain_graph=True)
    for _ in range(2):
        found = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
        for x, a, b in zip(inputs, found, wanted, strict=True):
            a, b = (torch.zeros_like(x) if y is None else y for y in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("gathered", "compact"), [(1, True), (2**20, False)])
def test_no_copy_of_all_windows(gathered, compact, monkeypatch):
    """The windows of all positions are larger than the row; the second case is the broken one."""
    monkeypatch.setitem(prefixes.GATHERED, "cpu", gathered)
    inputs = draw(1, 512)
    _, trail = window_attention(*inputs, 128)
    state = trail.at(torch.arange(200, 512, 13)[None])
    rows = len(state.windows.end)
    output, _ = state.attend(*draw(rows, 2))
    with PeakMemory() as memory:
        torch.autograd.grad(output.sin().sum(), inputs[1:])
    assert memory.largest_elements > 0
    assert (memory.largest_elements < rows * 127 * 2 * 4) == compact


@pytest.mark.parametrize(("in_place", "copied"), [(0, False), (2**30, True)])
def test_long_windows_are_read_where_they_lie(in_place, copied, monkeypatch):
    """The second case is the broken one."""
    monkeypatch.setattr(products, "IN_PLACE", in_place)
    _, trail = window_attention(*draw(1, 512), 128)
    state = trail.at(torch.arange(5, 512, 13)[None])
    rows = len(state.windows.end)
    with torch.no_grad(), PeakMemory() as memory:
        state.attend(*draw(rows, 2))
    assert memory.largest_elements > 0
    assert (memory.largest_elements >= rows * 127 * 2 * 4) == copied


def peak(length, window):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, length, 2, 8, generator=generator) for _ in range(3)]
    inputs = [x.requires_grad_() for x in inputs]
    with PeakMemory() as memory:
        window_attention(*inputs, window)[0].sum().backward()
    return memory


def test_memory_grows_with_tokens_not_with_their_square():
    small, large = peak(1024, 64), peak(8192, 64)
    assert large.peak_bytes < 10 * small.peak_bytes
    assert large.largest_elements <= 8192 * 2 * 8
    wide = peak(8192, 512)
    assert wide.peak_bytes < large.peak_bytes + 30 * 512 * 1024 * 4


def test_all_pairs_would_be_noticed(monkeypatch):
    """The broken case: one block for everything fails the same bound."""
    monkeypatch.setattr(blocked, "MIN_BLOCK", 10**6)
    monkeypatch.setattr(blocked, "MAX_BLOCK", 10**6)
    assert peak(2048, 64).largest_elements >= 2048 * 2048


def test_wrong_arguments():
    q, k, v = draw(1, 5)
    with pytest.raises(ValueError, match="window 0"):
        window_attention(q, k, v, 0)
    with pytest.raises(ValueError, match="v has shape"):
        window_attention(q, k, v[:, :2], 3)
