"""What forks, states and trails of any backbone must satisfy, as assertions that tests share."""

import tiny
import torch

from refine_pl.records import Prefill
from refine_pl.rollouts import Forked, Recompute


def rollout_tokens(shape, seed=5, vocab_size=23):
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def prefill_of(policy, batch):
    with torch.no_grad():
        output = policy(batch.tokens, batch.num_tokens, keep_trail=True)
        stats = policy.head(output.hidden.flatten(0, 1), entropy=True)
    return Prefill(output.hidden, stats.entropy.view(batch.tokens.shape), output.trail)


def gradients_of(policy):
    grads = ((name, p.grad, p) for name, p in policy.named_parameters())
    return {name: torch.zeros_like(p) if grad is None else grad.clone() for name, grad, p in grads}


def check_replay(policy, lengths, positions, copies=1, length=4, padding=10, unused=()):
    """Outputs and the gradients of all parameters, forked and recomputed, are the same.

    Returns:
        The number of gradients that were compared.
    """
    width = max(lengths) + padding
    batch = tiny.batch(lengths, width=width, padding=17)
    where = tiny.positions(positions)
    shape = (*where.index.shape, copies, length)
    tokens = rollout_tokens(shape)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(*shape, policy.hidden_size, dtype=torch.float64, generator=generator)
    results, gradients = [], []
    for side in (Forked(), Recompute(), Recompute(pad_to_full=True)):
        hidden, rollout_hidden = side.replay(policy, batch, where, tokens)
        policy.zero_grad()
        real = torch.arange(width) < batch.num_tokens[:, None]
        logprobs = policy.head(rollout_hidden.flatten(0, -2), tokens.flatten()).logprob
        loss = (rollout_hidden * weight).sum() + hidden[real].sin().sum() + logprobs.sum()
        loss.backward()
        results.append(torch.cat([rollout_hidden.detach().flatten(), logprobs.detach()]))
        gradients.append(gradients_of(policy))
    compared = 0
    for result, gradient in zip(results[1:], gradients[1:], strict=True):
        torch.testing.assert_close(results[0], result, rtol=1e-9, atol=1e-10)
        for name, expected in gradient.items():
            torch.testing.assert_close(
                gradients[0][name],
                expected,
                rtol=1e-6,
                atol=1e-8,
                msg=lambda text, name=name: f"{name}: {text}",
            )
            assert name in unused or expected.abs().sum() > 0, name
            compared += 1
    assert compared == 2 * len(gradients[0])
    return compared


def check_generators(policy, lengths, positions, copies=1, length=4):
    """Forked and recomputed rollouts draw the same tokens, with the same records."""
    batch = tiny.batch(lengths, width=max(lengths) + 10)
    where = tiny.positions(positions)
    segments = where.index.shape[1]
    prefill = prefill_of(policy, batch)
    randomness = [tiny.randomness(len(lengths)) for _ in range(3)]
    drawn = [
        side.generate(policy, prefill, batch, where, tiny.plan(segments, copies, length), random)
        for side, random in zip(
            (Forked(), Recompute(), Recompute(use_cache=False, pad_to_full=True)),
            randomness,
            strict=True,
        )
    ]
    first = drawn[0]
    assert first.tokens.shape == (len(lengths), segments, copies, length)
    assert len(first.tokens.unique()) > 5
    for other in drawn[1:]:
        assert torch.equal(first.tokens, other.tokens)
        for name in ("old_logprobs", "hidden", "target_hidden", "target_logprobs"):
            a, b = getattr(first, name), getattr(other, name)
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, check_dtype=False)


@torch.no_grad()
def check_parts(policy, total, cut, at, steps=3):
    """A row read in two parts, or token by token from any position, equals the row at once."""
    batch = tiny.batch([total, total])
    whole = policy(batch.tokens).hidden
    first = policy(batch.tokens[:, :cut], keep_trail=True)
    rest = policy(batch.tokens[:, cut:], state=first.state, keep_trail=True)
    torch.testing.assert_close(first.hidden, whole[:, :cut], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(rest.hidden, whole[:, cut:], rtol=1e-9, atol=1e-10)
    assert rest.state.num_tokens.tolist() == [total, total]
    positions = torch.tensor([at, at[::-1]])
    rows = torch.arange(2).repeat_interleave(len(at))
    for trail, start in ((first.trail, 0), (rest.trail, cut)):
        state = trail.at(positions)
        index = positions.flatten() + start
        assert state.num_tokens.tolist() == index.tolist()
        for _ in range(steps):
            output = policy(batch.tokens[rows, index][:, None], state=state)
            state, expected = output.state, whole[rows, index]
            torch.testing.assert_close(output.hidden[:, 0], expected, rtol=1e-9, atol=1e-10)
            index = index + 1


@torch.no_grad()
def check_token_by_token(policy, total):
    """Decoding from nothing, one token a step, equals the row at once."""
    batch = tiny.batch([total, total])
    whole = policy(batch.tokens)
    output = policy(batch.tokens[:, :1])
    for t in range(1, total):
        output = policy(batch.tokens[:, t : t + 1], state=output.state)
        expected = whole.hidden[:, t]
        torch.testing.assert_close(output.hidden[:, 0], expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def check_unequal_rows(policy, lengths, more_lengths):
    """Rows of unequal lengths continue from their own ends."""
    batch = tiny.batch(lengths, padding=11)
    more = tiny.batch(more_lengths, seed=3, padding=5)
    state = policy(batch.tokens, batch.num_tokens).state
    got = policy(more.tokens, more.num_tokens, state=state)
    for row, (n, m) in enumerate(zip(lengths, more_lengths, strict=True)):
        joined = torch.cat([batch.tokens[row, :n], more.tokens[row, :m]])
        expected = policy(joined[None])
        if m:
            torch.testing.assert_close(
                got.hidden[row, :m], expected.hidden[0, -m:], rtol=1e-9, atol=1e-10
            )
        one = got.state.select(torch.tensor([row]))
        assert one.num_tokens.tolist() == [n + m]
        token = torch.tensor([[7, 3]])
        torch.testing.assert_close(
            policy(token, state=one).hidden,
            policy(token, state=expected.state).hidden,
            rtol=1e-9,
            atol=1e-10,
        )
