"""Whole models and updates: by kernels and by torch, and against other people's classes."""

import inspect
import os
from contextlib import nullcontext

import pytest
import tiny
import torch
from closeness import logits_of, relative
from fla_models import published
from replayed_ops import DecodedAgain, ReplayedOps
from single_updates import MODELS, update

from refine_kernels.backends import fla_decay_fault
from refine_pl.records import Prefill, RolloutPlan
from refine_pl.rollouts import Forked, Recompute
from refine_pl.rollouts.decode_graph import Decoder
from refine_pl.rollouts.recorders import CudaRecorder
from refine_pl.selectors import Fixed

pytestmark = pytest.mark.gpu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

RULES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 128,
}
LARGE = {
    "DeltaNet": {"hidden_size": 256, "num_heads": 4},
    "GatedDeltaNet": {"hidden_size": 256, "num_heads": 4, "head_dim": 64},
    "LaCT": {
        **{"hidden_size": 256, "num_attn_heads": 4, "num_lact_heads": 2},
        **{"lact_chunk_size": 128, "window_size": 128},
    },
    "Qwen35": RULES | {"head_dim": 64},
    "OlmoHybrid": RULES,
}
HYBRIDS = ("Qwen35", "OlmoHybrid")
KIND = {"Qwen35": "qwen3_5_text", "OlmoHybrid": "olmo_hybrid"}


def policy_of(place, name, **options):
    """A small model, with weights of float32."""
    if place.is_gpu:
        options |= LARGE[name] | {"initializer_range": 0.05}
    elif name in HYBRIDS:
        two = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
        options |= two
    else:
        options |= {"num_hidden_layers": 1}
    policy = MODELS[name](**options).float().to(place.device)
    if place.is_gpu:  # in 16 bits, outputs of a rule that are all small would be mostly rounding
        with torch.no_grad():
            policy.embeddings.weight.mul_(20)
    return policy


def rows_of(place):
    return tiny.batch(place.size([700, 650], [39]), padding=3).to(place.device)


class Again(Forked):
    """Draws what was drawn at first: two ways to compute may round a draw to another token."""

    drawn = None

    def generate(self, *arguments):
        if self.drawn is None:
            self.drawn = super().generate(*arguments)
        return self.drawn


def gradient(kind, policy, place, generator):
    """Of one update; on a GPU in mixed precision, as training does it."""
    parts = {"selector": Fixed(stride=place.size(77, 17), min_prefix=8, min_suffix=4)}
    parts |= {"plan": place.size((8, 2, 5), (1, 2, 2)), "generator": generator}
    on = nullcontext if not place.is_gpu else lambda: torch.autocast("cuda", torch.bfloat16)
    loss, gradients, _ = update(kind, policy, rows_of(place), autocast=on, **parts)
    assert len(gradients) == len(list(policy.parameters()))
    return loss, torch.cat([x.flatten() for x in gradients.values()])


@pytest.mark.parametrize("checkpointing", [True] if INTERPRETED else [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_an_update_by_kernels_equals_one_by_torch(place, name, checkpointing, monkeypatch):
    options = {"activation_checkpointing": checkpointing}
    generator, found = Again(), []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("REFINE_KERNELS", {"torch": "torch", "triton": ""}[backend])
        policy = policy_of(place, name, backend=backend, **options)
        found.append(gradient("joined", policy, place, generator))
    (loss, one), (other_loss, other) = found
    assert relative(other_loss, loss) < place.size(0.01, 1e-5)
    assert relative(other, one) < place.size(0.06, 1e-4)
    assert other.norm() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_joined_equals_two_passes(place, name, checkpointing):
    policy = policy_of(place, name, activation_checkpointing=checkpointing)
    generator = Again()
    found = [gradient(kind, policy, place, generator) for kind in ("two_pass", "joined")]
    (loss, one), (other_loss, other) = found
    assert relative(other_loss, loss) < place.size(0.01, 1e-5)
    assert relative(other, one) < place.size(0.03, 1e-4)


@pytest.mark.parametrize("name", ["DeltaNet", "LaCT", "Qwen35"])
def test_forks_equal_recomputation(place, name):
    policy, batch = policy_of(place, name), rows_of(place)
    index = place.size([[64, 200, 511, 513], [65, 100, 400, 640]], [[17, 30]])
    where = tiny.positions(index)
    where = tiny.Positions(where.index.to(place.device), where.valid.to(place.device))
    tokens = torch.randint(0, 23, (len(index), len(index[0]), 2, 5), device=place.device)
    gradients = []
    for generator in (Forked(), Recompute()):
        policy.zero_grad()
        with torch.autocast("cuda", torch.bfloat16) if place.is_gpu else nullcontext():
            hidden, rollouts = generator.replay(policy, batch, where, tokens)
            logprobs = policy.head(rollouts.flatten(0, -2), tokens.flatten()).logprob
            loss = logprobs.sum() + hidden.float().square().mean()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    assert relative(*gradients) < place.size(0.06, 1e-4)


class EagerOnCuda(DecodedAgain):
    """Of what is given to a graph: in 16 bits other products may round to other tokens."""

    device_type = "cuda"


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_draws_what_decoding_draws(place, name):
    """While weights change where they lie, as an optimizer changes them."""
    chunks = {"lact_chunk_size": 64} if name == "LaCT" else {}  # none becomes full
    policy, graph, eager = policy_of(place, name, **chunks), Forked("always"), Forked("always")
    graph.decode = Decoder(CudaRecorder if place.is_gpu else ReplayedOps)
    eager.decode = Decoder(EagerOnCuda if place.is_gpu else DecodedAgain)
    for number in range(4):
        batch = tiny.batch(place.size([700, 650], [39]), seed=number).to(place.device)
        index = torch.tensor(place.size([[64, 513], [200, 640]], [[17]]), device=place.device)
        where = tiny.Positions(index + number, torch.ones_like(index, dtype=torch.bool))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
            with torch.autocast("cuda", torch.bfloat16) if place.is_gpu else nullcontext():
                output = policy(batch.tokens, batch.num_tokens, keep_trail=True)
                drawn = [
                    generator.generate(
                        *(policy, Prefill(output.hidden, None, output.trail), batch, where),
                        *(RolloutPlan(len(index[0]), 2, 5), tiny.randomness(len(batch), number)),
                    )
                    for generator in (graph, eager)
                ]
        one, other = drawn
        assert torch.equal(one.tokens, other.tokens)
        assert relative(one.old_logprobs, other.old_logprobs) < 1e-3
        assert relative(one.hidden.float(), other.hidden.float()) < 1e-2
    assert len(graph.decode.recordings) == 1


@pytest.mark.parametrize("kind", ["delta_net", "gated_deltanet"])
def test_flas_own_models(gpu, kind):
    """The same weights in their classes: logits, the loss and its gradients."""
    if kind == "gated_deltanet" and (fault := fla_decay_fault()):
        pytest.skip(fault)
    sizes = {"hidden_size": 256, "num_hidden_layers": 3}
    errors = published(kind, gpu.device, torch.bfloat16, length=300, **sizes)
    assert errors["published"] < 0.03
    assert errors["loss"] < 0.01
    assert len(errors["gradients"]) > 20
    # The decay's two vectors are sums that all but cancel: 16 bits tell nothing about them.
    known = {n: x for n, x in errors["gradients"].items() if not n.endswith(("A_log", "dt_bias"))}
    assert all(error < 0.1 for error in known.values()), known


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_in_transformers(place, name, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid
    from transformers.models.qwen3_5 import modeling_qwen3_5

    if not place.is_gpu:  # they take flash-linear-attention's kernels if those are installed
        for module in (modeling_olmo_hybrid, modeling_qwen3_5):
            for chunked in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
                monkeypatch.setattr(module, chunked, inspect.unwrap(getattr(module, chunked)))
    ours = policy_of(place, name)
    fields = {key: x for key, x in ours.config().items() if key != "model_type"}
    config = AutoConfig.for_model(KIND[name], **fields)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(ours.state_dict())
    dtype = place.size(torch.bfloat16, torch.float32)
    ours, theirs = ours.to(dtype), theirs.to(place.device, dtype)
    tokens = torch.randint(0, 23, (2, place.size(300, 40)), device=place.device)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
    assert relative(logits_of(ours, tokens), expected) < place.size(0.04, 1e-4)
