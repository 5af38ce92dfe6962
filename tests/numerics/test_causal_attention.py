"""Causal attention: whole rows, rows that continue, forks that share their prefix."""

import pytest
import torch

from refine_kernels.causal_attention import causal_attention, interface, shared
from refine_kernels.causal_attention.reference import causal_attention_reference

HEADS, WIDTH = 4, 6


def tokens(rows, length, groups=2, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(
            rows, length, n, WIDTH, dtype=torch.float64, generator=generator, requires_grad=grad
        )
        for n in (HEADS, groups, groups)
    ]


def part(qkv, *index):
    return [x[index] for x in qkv]


def joined(*parts):
    return [torch.cat(each, 1) for each in zip(*parts, strict=True)]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_whole_rows(groups):
    qkv = tokens(2, 33, groups, grad=True)
    weight = torch.randn(2, 33, HEADS, WIDTH, dtype=torch.float64)
    outputs = causal_attention(*qkv)[0], causal_attention_reference(*qkv)
    close(*outputs)
    gradients = [torch.autograd.grad((out * weight).sum(), qkv) for out in outputs]
    for a, b in zip(*gradients, strict=True):
        close(a, b)


def test_rows_continue_from_their_own_ends(monkeypatch):
    monkeypatch.setattr(interface, "MASKED_QUERIES", 4)
    first, second, third = tokens(3, 9, seed=1), tokens(3, 11, seed=2), tokens(3, 7, seed=3)
    ends, more = [9, 1, 5], [11, 3, 0]
    state = causal_attention(*first)[1].at(torch.tensor(ends)[:, None])
    got, trail = causal_attention(*second, state)
    last, _ = causal_attention(*third, trail.at(torch.tensor(more)[:, None]))
    for row, (n, m) in enumerate(zip(ends, more, strict=True)):
        rows = slice(row, row + 1)
        whole = joined(part(first, rows, slice(n)), part(second, rows, slice(m)), part(third, rows))
        expected = causal_attention_reference(*whole)[0]
        close(got[row, :m], expected[n : n + m])
        close(last[row], expected[n + m :])


@pytest.mark.parametrize("groups", [1, 4])
def test_forks_read_their_prefix_and_themselves(groups):
    """Positions of a row, copies of them, tokens one by one and several at once."""
    qkv = tokens(2, 20, groups, grad=True)
    positions = torch.tensor([[0, 3, 20], [7, 1, 19]])
    forked = causal_attention(*qkv)[1].at(positions).fork(2)
    own = tokens(12, 5, groups, seed=4, grad=True)
    one, state = forked.attend(*part(own, slice(None), slice(2)))
    two, state = state.attend(*part(own, slice(None), slice(2, 3)))
    three, state = state.attend(*part(own, slice(None), slice(3, 5)))
    assert state.keys.data_ptr() == forked.keys.data_ptr()
    output = torch.cat([one, two, three], 1)
    expected = []
    for row in range(12):
        prefix = part(qkv, slice(row // 6, row // 6 + 1), slice(int(positions.flatten()[row // 2])))
        whole = joined(prefix, part(own, slice(row, row + 1)))
        expected.append(causal_attention_reference(*whole)[:, -5:])
    expected = torch.cat(expected)
    close(output, expected)
    weight = torch.randn_like(output)
    gradients = [
        torch.autograd.grad((x * weight).sum(), (*qkv[1:], *own)) for x in (output, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        close(a, b)


def test_any_rows_stay_while_others_go():
    """Chosen rows in any order and number; the prefix is in memory once, or not at all."""
    generator = torch.Generator().manual_seed(0)
    qkv, own = tokens(3, 12), tokens(12, 4, seed=7)
    state = causal_attention(*qkv)[1].at(torch.tensor([[5, 12], [1, 2], [9, 3]])).fork(2)
    _, state = state.attend(*part(own, slice(None), slice(2)))
    compared = 0
    for size in (12, 1, 5, 9, 20):
        rows = torch.randint(12, (size,), generator=generator)
        chosen = state.select(rows)
        assert len(chosen.keys) == len({int(row) // 4 for row in rows})
        again = torch.randperm(size, generator=generator)[: max(size // 2, 1)]
        for one, kept in ((chosen, rows), (chosen.select(again), rows[again])):
            forks = one.fork(3)
            new = part(own, kept.repeat_interleave(3), slice(2, 4))
            close(
                forks.attend(*new)[0],
                state.attend(*part(own, slice(None), slice(2, 4)))[0][kept.repeat_interleave(3)],
            )
            packed, before = forks.extended(*new[1:])[0], forks.end + forks.num_own
            assert packed.shape[2] == forks.keys.shape[2] + 4
            close(packed[torch.arange(len(before)), :, before], new[1][:, 0])
            compared += len(kept)
    assert compared > 60
    assert len(state.select(torch.tensor([], dtype=torch.int64)).end) == 0


def test_a_cache_grows_in_blocks(monkeypatch):
    monkeypatch.setattr(shared, "OWN_BLOCK", 4)
    prefix, own = tokens(2, 5), tokens(2, 23, seed=8)
    state = causal_attention(*prefix)[1].at(torch.tensor([[5], [2]]))
    copied, outputs = 0, []
    for t in range(23):
        before = [block.data_ptr() for block in state.own_keys]
        output, state = state.attend(*part(own, slice(None), slice(t, t + 1)))
        blocks = state.own_keys
        assert len(blocks) <= 2
        assert state.num_own == t + 1
        copied += sum(block.shape[2] for block in blocks if block.data_ptr() not in before)
        outputs.append(output)
    assert copied < 23 * 24 / 2 * 0.6  # one by one: each token copies all of them
    for row, end in enumerate((5, 2)):
        rows = slice(row, row + 1)
        whole = joined(part(prefix, rows, slice(end)), part(own, rows))
        expected = causal_attention_reference(*whole)[0, end:]
        close(torch.cat(outputs, 1)[row], expected)


def test_shapes_that_do_not_fit():
    q, k, v = tokens(1, 3)
    with pytest.raises(ValueError, match="k has shape"):
        causal_attention(q, k[:, :2], v)
    with pytest.raises(ValueError, match="4 heads of q cannot share 3"):
        causal_attention(*tokens(1, 3, groups=3))
