"""A LaCT layer written out again, token by token, in the words of the paper's equations."""

import math

import pytest
import tiny
import torch

from refine_pl.backbones.base import TokenLayout
from refine_pl.backbones.rope import rotate, rotations

LENGTH, CHUNK, WINDOW = 29, 8, 12
HEADS, FAST_HEADS, WIDTH = 4, 2, 16


def silu(x):
    return x / (1 + (-x).exp())


def turn(x, t, theta=10000.0):
    """Each pair (i, i + d/2) of a head as a complex number, times e^(i t theta^(-2i/d))."""
    half = len(x) // 2
    turned = x.clone()
    for i in range(half):
        angle = t * theta ** (-2 * i / len(x))
        a, b = x[i], x[i + half]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def turn_heads(x, t):
    return torch.cat([turn(head, t) for head in x.split(WIDTH // HEADS)])


def attention(q, k, v):
    outputs = []
    for t in range(LENGTH):
        parts = []
        for h in range(HEADS):
            here = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            seen = range(max(0, t - WINDOW + 1), t + 1)
            query = turn(q[t, here], t)
            scores = [query @ turn(k[s, here], s) / (WIDTH // HEADS) ** 0.5 for s in seen]
            weights = torch.stack(scores).softmax(0)
            parts.append(sum(w * v[s, here] for w, s in zip(weights, seen, strict=True)))
        outputs.append(torch.cat(parts))
    return torch.stack(outputs)


def score(weights, k, v, rates):
    """Differentiating this with respect to copies of the weights gives each its own rate."""
    w0, w1, w2 = weights
    total = 0
    for i in range(len(k)):
        for which in range(3):
            own = [w if j == which else w.detach() for j, w in enumerate((w0, w1, w2))]
            f = own[1] @ (silu(own[0] @ k[i]) * (own[2] @ k[i]))
            total = total + rates[i, which] * (f @ v[i])
    return total


def fast_head(q, k, v, rates, kept, weights):
    norms = [w.norm(dim=1, keepdim=True) for w in weights]
    before = [torch.zeros_like(w) for w in weights]
    outputs = []
    for t in range(LENGTH):
        if t and t % CHUNK == 0:
            here = slice(t - CHUNK, t)
            with torch.enable_grad():
                leaves = [w.clone().requires_grad_() for w in weights]
                found = torch.autograd.grad(score(leaves, k[here], v[here], rates[here]), leaves)
            momentum = kept[here].sum() / CHUNK
            before = [d + momentum * old for d, old in zip(found, before, strict=True)]
            moved = [w + d for w, d in zip(weights, before, strict=True)]
            weights = [
                w / (w.norm(dim=1, keepdim=True) + 1e-5) * norm
                for w, norm in zip(moved, norms, strict=True)
            ]
        outputs.append(weights[1] @ (silu(weights[0] @ q[t]) * (weights[2] @ q[t])))
    return torch.stack(outputs)


@torch.no_grad()
def layer(mixer, x):
    q, k, v = (x @ mixer.qkv.weight.T + mixer.qkv.bias).split(WIDTH, -1)
    q, k = (
        y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        for y, norm in ((q, mixer.q_norm), (k, mixer.k_norm))
    )
    seen = attention(q, k, v)
    fast_q, fast_k = (
        silu(y * mixer.qk_scale[:, i] + mixer.qk_offset[:, i]) for i, y in enumerate((q, k))
    )
    fast_v = silu(v)
    rates = (1 + (mixer.lr_proj(x) + math.log(math.exp(0.001) - 1)).exp()).log()
    kept = 1 / (1 + (-mixer.momentum_proj[0](x)).exp())
    scale = silu(mixer.ttt_scale_proj(x))
    half = 0.5 * torch.eye(WIDTH // FAST_HEADS, dtype=x.dtype)
    # Normalised within a fast head, turned within a head of the attention.
    turned = []
    for y in (fast_q, fast_k):
        heads = [z / (z.norm(dim=-1, keepdim=True) + 1e-5) for z in y.chunk(FAST_HEADS, -1)]
        y = torch.cat(heads, -1)
        turned.append(torch.stack([turn_heads(y[t], t) for t in range(LENGTH)]))
    parts = []
    for h in range(FAST_HEADS):
        here = slice(h * WIDTH // FAST_HEADS, (h + 1) * WIDTH // FAST_HEADS)
        weights = [
            mixer.w0.w_left[h] @ mixer.w0.w_right[h] + half,
            mixer.w1[h],
            mixer.w2.w_left[h] @ mixer.w2.w_right[h] + half,
        ]
        y = fast_head(
            turned[0][:, here],
            turned[1][:, here],
            fast_v[:, here],
            rates[:, 3 * h : 3 * h + 3],
            kept[:, h],
            weights,
        )
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.ttt_norm.weight
        parts.append(y * scale[:, h : h + 1])
    return (seen + torch.cat(parts, -1)) @ mixer.o_proj.weight.T


def test_a_layer_equals_its_equations():
    policy = tiny.lact(w0_w2_low_rank=4, qkv_bias=True, attn_qk_norm=True)
    mixer = policy.model.layers[0].attn
    torch.manual_seed(1)
    with torch.no_grad():
        for norm in (mixer.q_norm, mixer.k_norm, mixer.ttt_norm):
            norm.weight.add_(torch.randn_like(norm.weight), alpha=0.3)
        mixer.ttt_scale_proj.bias.normal_()
        x = torch.randn(LENGTH, WIDTH, dtype=torch.float64)
        layout = TokenLayout(1, LENGTH, torch.tensor([LENGTH]))
        got, _, _ = mixer(x, layout, None, False)
    expected = layer(mixer, x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    first = slice(0, CHUNK)
    updated = (expected - layer(mixer, torch.cat([x[first] + 0.5, x[CHUNK:]])))[-1].abs().max()
    assert updated > 1e-3  # the first chunk is out of the last token's window


def test_rotations_of_distant_tokens():
    x = torch.randn(1, 2, 8, dtype=torch.float64)
    table = rotations(torch.tensor([20_000]), 8, 1e6, torch.float64)
    expected = torch.stack([turn(head, 20_000, 1e6) for head in x[0]])
    torch.testing.assert_close(rotate(x, table)[0], expected)
    single = rotate(x.float(), rotations(torch.tensor([20_000]), 8, 1e6, torch.float32))
    torch.testing.assert_close(single[0], expected.float(), atol=1e-2, rtol=0)


def test_fresh_rates_are_small():
    policy = tiny.lact()
    mixer = policy.model.layers[0].attn
    with torch.no_grad():
        mixer.lr_proj.weight.zero_()
        mixer.lr_proj.bias.zero_()
    layout = TokenLayout(1, 3, torch.tensor([3]))
    main, _ = mixer._project(torch.randn(3, 16).double(), layout, torch.tensor([0]))
    assert main.fast.rates.shape == (1, 3, 2, 3)
    torch.testing.assert_close(main.fast.rates, torch.full_like(main.fast.rates, 1e-3))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_muon_in_sixteen_bits_is_another_result(dtype):
    fields = {"use_muon": True, "dtype": torch.float32, "newton_schulz_dtype": dtype}
    policy, exact = tiny.lact(**fields), tiny.lact(**fields | {"dtype": torch.float64})
    exact.load_state_dict(policy.state_dict())
    for block in exact.model.layers:
        block.attn.rule = type(block.attn.rule)(8, False, torch.float64)
    tokens = tiny.batch([40]).tokens
    with torch.no_grad():
        got, wanted = policy(tokens).hidden, exact(tokens).hidden
    apart = float((got - wanted).norm() / wanted.norm())
    assert apart > 1e-3 if dtype == "bfloat16" else apart < 1e-4
