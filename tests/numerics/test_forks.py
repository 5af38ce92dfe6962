"""Forks equal recomputation: hidden states, log-probabilities, rollouts, and every gradient."""

import pytest
import tiny
import torch

from refine_pl.backbones import Forks
from refine_pl.rollouts import Forked, Recompute

# Around the borders of the recurrence's chunks (64 tokens), around 0, and at the end.
POSITIONS = [[1, 2, 63, 64, 65, 130], [3, 4, 62, 66, 100, 127]]
LENGTHS = [140, 131]

OPTIONS = [
    {},
    {"use_gate": True, "expand_v": 2.0},
    {"use_beta": False, "qk_activation": "elu", "qk_norm": "sum", "expand_k": 0.5},
    {"allow_neg_eigval": True, "qk_activation": "relu"},
    {"use_short_conv": False, "qk_activation": "identity"},
    {"use_short_conv": False, "tie_word_embeddings": True},
    {"conv_size": 2, "activation_checkpointing": True},
    {"conv_size": 1},
]


def rollout_tokens(shape, seed=5):
    return torch.randint(0, 23, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("copies", [1, 3])
def test_forks_equal_recomputation(options, copies):
    policy = tiny.delta_net(**options)
    batch = tiny.batch(LENGTHS, width=150, padding=17)
    positions = tiny.positions(POSITIONS)
    tokens = rollout_tokens((2, 6, copies, 4))
    weight = torch.randn(2, 6, copies, 4, 16, dtype=torch.float64)
    gradients = []
    results = []
    for generator in (Forked(), Recompute(), Recompute(pad_to_full=True)):
        hidden, rollout_hidden = generator.replay(policy, batch, positions, tokens)
        policy.zero_grad()
        real = torch.arange(150) < batch.num_tokens[:, None]
        logprobs = policy.head(rollout_hidden.flatten(0, -2), tokens.flatten()).logprob
        loss = (rollout_hidden * weight).sum() + hidden[real].sin().sum() + logprobs.sum()
        loss.backward()
        results.append(torch.cat([rollout_hidden.detach().flatten(), logprobs.detach()]))
        gradients.append([p.grad.clone() for p in policy.parameters()])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-9, atol=1e-10)
    compared = 0
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
            compared += 1
    assert compared == 2 * len(list(policy.parameters()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("copies", [1, 3])
def test_generators_draw_the_same_rollouts(options, copies):
    policy = tiny.delta_net(**options)
    batch = tiny.batch(LENGTHS, width=150)
    positions = tiny.positions(POSITIONS)
    prefill = prefill_of(policy, batch)
    drawn = [
        generator.generate(
            policy, prefill, batch, positions, tiny.plan(6, copies, 4), tiny.randomness(2)
        )
        for generator in (Forked(), Recompute(), Recompute(use_cache=False, pad_to_full=True))
    ]
    first = drawn[0]
    assert first.tokens.shape == (2, 6, copies, 4)
    assert len(first.tokens.unique()) > 5
    for other in drawn[1:]:
        assert torch.equal(first.tokens, other.tokens)
        assert torch.equal(first.targets, other.targets)
        for name in ("old_logprobs", "hidden", "target_hidden", "target_logprobs"):
            a, b = getattr(first, name), getattr(other, name)
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, check_dtype=False)
    if copies > 1:
        assert not torch.equal(first.tokens[:, :, 0], first.tokens[:, :, 1])


def prefill_of(policy, batch):
    from refine_pl.records import Prefill

    with torch.no_grad():
        output = policy(batch.tokens, batch.num_tokens, keep_trail=True)
        stats = policy.head(output.hidden.flatten(0, 1), entropy=True)
    return Prefill(output.hidden, stats.entropy.view(batch.tokens.shape), output.trail)


def test_replay_starts_from_the_sampled_logprobs():
    """On-policy, the log-probabilities of the update are those of sampling."""
    policy = tiny.delta_net()
    batch = tiny.batch(LENGTHS)
    positions = tiny.positions(POSITIONS)
    rollouts = Forked().generate(
        policy, prefill_of(policy, batch), batch, positions, tiny.plan(6, 2, 5), tiny.randomness(2)
    )
    _, hidden = Forked().replay(policy, batch, positions, rollouts.tokens)
    again = policy.head(hidden.flatten(0, -2), rollouts.tokens.flatten()).logprob
    torch.testing.assert_close(again.view_as(rollouts.old_logprobs).float(), rollouts.old_logprobs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_states_continue_rows(options):
    """A row read in parts, from trail, from state, token by token, equals the row read at once."""
    policy = tiny.delta_net(**options)
    batch = tiny.batch([150, 150])
    with torch.no_grad():
        whole = policy(batch.tokens).hidden
        first = policy(batch.tokens[:, :70], keep_trail=True)
        rest = policy(batch.tokens[:, 70:], state=first.state, keep_trail=True)
        torch.testing.assert_close(rest.hidden, whole[:, 70:], rtol=1e-9, atol=1e-10)
        assert rest.state.num_tokens.tolist() == [150, 150]

        at = torch.tensor([[5, 40], [64, 70]])
        for trail, start in ((first.trail, 0), (rest.trail, 70)):
            state = trail.at(at)
            assert state.num_tokens.tolist() == [p + start for p in at.flatten().tolist()]
            for step in range(3):
                index = at.flatten() + start + step
                rows = torch.tensor([0, 0, 1, 1])
                output = policy(batch.tokens[rows, index][:, None], state=state)
                state = output.state
                expected = whole[rows, index]
                torch.testing.assert_close(output.hidden[:, 0], expected, rtol=1e-9, atol=1e-10)


def test_unequal_rows_continue_from_their_own_ends():
    policy = tiny.delta_net()
    batch = tiny.batch([33, 90, 1], padding=11)
    more = tiny.batch([4, 2, 20], seed=3, padding=5)
    with torch.no_grad():
        state = policy(batch.tokens, batch.num_tokens).state
        got = policy(more.tokens, more.num_tokens, state=state)
        for row in range(3):
            joined = torch.cat(
                [
                    batch.tokens[row, : batch.num_tokens[row]],
                    more.tokens[row, : more.num_tokens[row]],
                ]
            )
            expected = policy(joined[None])
            n = int(more.num_tokens[row])
            torch.testing.assert_close(
                got.hidden[row, :n], expected.hidden[0, -n:], rtol=1e-9, atol=1e-10
            )
            one = got.state.select(torch.tensor([row]))
            token = torch.tensor([[7]])
            torch.testing.assert_close(
                policy(token, state=one).hidden,
                policy(token, state=expected.state).hidden,
                rtol=1e-9,
                atol=1e-10,
            )


def test_decoding_needs_constant_memory():
    policy = tiny.delta_net(dtype=torch.float32)
    with torch.no_grad():
        state = policy(tiny.batch([20]).tokens).state.fork(3)
        sizes = []
        for _ in range(70):
            state = policy(torch.ones(3, 1, dtype=torch.int64), state=state).state
            sizes.append(state.nbytes)
    assert max(sizes[35:]) <= max(sizes[:35])


def test_a_detached_fork_would_be_noticed():
    """The broken case: without the gradient through the state the comparison must fail."""
    policy = tiny.delta_net()
    batch = tiny.batch([80])
    tokens = rollout_tokens((1, 1, 1, 3))
    forks = Forks(torch.tensor([[70]]), tokens, torch.ones(1, 1, dtype=torch.bool))
    through = policy(batch.tokens, forks=forks).fork_hidden.sum()
    expected = torch.autograd.grad(through, policy.model.layers[0].attn.v_proj.weight)[0]
    state = policy(batch.tokens, keep_trail=True).trail.at(torch.tensor([[70]])).detach()
    detached = policy(tokens.view(1, 3), state=state).hidden.sum()
    torch.testing.assert_close(detached, through)
    broken = torch.autograd.grad(detached, policy.model.layers[0].attn.v_proj.weight)[0]
    assert (broken - expected).norm() > 0.1 * expected.norm()
