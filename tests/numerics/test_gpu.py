"""On CUDA: Triton kernels, ours and fla's, against torch, and our models against fla's own."""

import pytest
import tiny
import torch
from closeness import relative

from refine_kernels.delta_rule import SharedState, delta_rule, delta_rule_shared
from refine_kernels.token_stats import token_stats

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("length", [100, 1300])
@pytest.mark.parametrize("kernels", ["triton", "fla"])
def test_triton_kernels_equal_the_torch_ones(kernels, length, decay):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
    beta = torch.rand(2, length, 4, device="cuda", dtype=torch.bfloat16)
    g = -torch.rand(2, length, 4, device="cuda") if decay else None
    inputs = [t for t in (q, k, v, beta, g) if t is not None]
    positions = torch.tensor([[0, 1, 63, length], [64, length // 2, length - 1, 65]]).cuda()
    results = []
    for backend in (kernels, "torch"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = delta_rule(*leaves, normalize_qk=True, keep_trail=True, backend=backend)
        states = out.trail.at(positions)
        loss = out.output.float().sin().sum() + states.sin().sum() + out.state.cos().sum()
        gradients = torch.autograd.grad(loss, leaves)
        results.append([out.output, out.state, states, *gradients])
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 0.03


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("steps", [[5], [1, 1, 2], [12, 6]])
def test_forks_by_triton_equal_the_torch_ones(steps, decay):
    torch.manual_seed(0)
    copies, length = 3, sum(steps)
    q, k, v = (torch.randn(6, length, 4, 64, device="cuda").bfloat16() for _ in "qkv")
    beta = torch.rand(6, length, 4, device="cuda").bfloat16()
    matrix = torch.randn(2, 4, 64, 64, device="cuda")
    g = -torch.rand(6, length, 4, device="cuda") if decay else None
    inputs = [t for t in (q, k, v, beta, matrix, g) if t is not None]
    results = []
    for backend in ("triton", "torch"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        state, outputs, start = SharedState(leaves[4], copies), [], 0
        for step in steps:
            here = slice(start, start + step)
            part = [t[:, here] for t in leaves[:4]]
            output, state = delta_rule_shared(
                *part, leaves[5][:, here] if decay else None, state, normalize_qk=True,
                backend=backend,
            )  # fmt: skip
            outputs.append(output)
            start += step
        final = state.fold().matrix
        loss = sum(x.float().sin().sum() for x in outputs) + final.cos().sum()
        results.append([*outputs, final, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 0.02


@pytest.mark.parametrize(("rows", "vocab_size"), [(1, 50), (300, 1001), (5000, 32000)])
def test_token_stats_by_triton_equal_the_torch_ones(rows, vocab_size):
    torch.manual_seed(0)
    hidden = torch.randn(rows, 128, device="cuda").bfloat16()
    weight = torch.randn(vocab_size, 128, device="cuda") / 8
    targets = torch.randint(-1, vocab_size, (rows,), device="cuda")
    results = []
    for backend in ("triton", "torch"):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
        with torch.autocast("cuda", torch.bfloat16):
            found = token_stats(*leaves, targets, entropy=True, correct=True, backend=backend)
        loss = found.logprob.sum() + found.entropy.sin().sum()
        statistics = found.logprob, found.entropy, found.correct.float().mean()
        results.append([*statistics, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 0.02


def test_forked_update_equals_recomputation_in_bfloat16():
    from refine_pl.rollouts import Forked, Recompute

    sizes = {"hidden_size": 128, "num_heads": 2, "initializer_range": 0.05}
    policy = tiny.delta_net(dtype=torch.float32, **sizes).cuda()
    batch = tiny.batch([700, 650])
    batch = tiny.Batch(batch.tokens.cuda(), batch.num_tokens.cuda(), batch.rows)
    where = tiny.positions([[64, 200, 511, 513], [65, 100, 400, 640]])
    where = tiny.Positions(where.index.cuda(), where.valid.cuda())
    tokens = torch.randint(0, 23, (2, 4, 2, 5)).cuda()
    gradients = []
    for generator in (Forked(), Recompute()):
        policy.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            hidden, rollouts = generator.replay(policy, batch, where, tokens)
            flat = rollouts.flatten(0, -2)
            loss = (
                policy.head(flat, tokens.flatten()).logprob.sum() + hidden.float().square().mean()
            )
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert relative(*gradients) < 0.05


def test_delta_net_equals_flas_own_model():
    from fla.models import DeltaNetConfig, DeltaNetForCausalLM

    config = DeltaNetConfig(
        hidden_size=256, num_hidden_layers=3, num_heads=2, vocab_size=101,
        fuse_cross_entropy=False, initializer_range=0.05,
    )  # fmt: skip
    theirs = DeltaNetForCausalLM(config).cuda().bfloat16()
    ours = tiny.DeltaNet(
        hidden_size=256, num_hidden_layers=3, num_heads=2, vocab_size=101
    ).cuda().bfloat16()  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randint(0, 101, (2, 300), device="cuda")
    expected = theirs(input_ids=tokens, labels=tokens)
    hidden = ours(tokens).hidden
    logits = ours.head(hidden.flatten(0, 1), logits=True).logits.view_as(expected.logits)
    assert relative(logits, expected.logits) < 0.03
    loss = -ours.head(hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).logprob.mean()
    assert relative(loss, expected.loss) < 0.01
    loss.backward()
    expected.loss.backward()
    compared = 0
    for name, parameter in theirs.named_parameters():
        assert relative(ours.get_parameter(name).grad, parameter.grad) < 0.08, name
        compared += 1
    assert compared == len(list(ours.parameters()))
