"""Decoding that is recorded once and then started by the host as a whole: a CUDA graph.

The first draw of a signature (:mod:`refine_pl.rollouts.signature`) decodes eagerly. The second is
recorded, and what the recording draws is compared with eager decoding of the same inputs. From then
on inputs are copied to where the recording reads them, and what it wrote is copied out.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Hashable
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from refine_kernels.records import map_tensors
from refine_pl.backbones.base import FastWeightLM, LayerState, State
from refine_pl.errors import ConfigError, check_choice, deepest_reason
from refine_pl.rollouts.decode import Decoded, decode
from refine_pl.rollouts.recorders import CudaRecorder, Recorder
from refine_pl.rollouts.signature import form_of, surroundings_of

DecodeGraph = Literal["auto", "always", "never"]

KEPT = 2  # recordings: the last batch of a pass over the data may be smaller than the others
PATIENCE = 32  # draws in a row that none before was like
SELDOM = (
    "they hardly ever have the sizes, and the model the memory, of one before, or chunks of LaCT "
    "become full in them"
)
TOLERANCE = 1e-2  # of log-probabilities: the same kernels, whose sums may run in another order
KEY = "model.generator.init_args.decode_graph"


class _Inputs(NamedTuple):
    """All tensors that differ from draw to draw."""

    hidden: Tensor
    layers: tuple[LayerState, ...]
    num_tokens: Tensor
    targets: Tensor
    uniform: Tensor

    def decode(self, policy: FastWeightLM) -> Decoded:
        state = State(self.layers, self.num_tokens)
        return decode(policy, self.hidden, state, self.targets, self.uniform)


class Decoder:
    """Decodes as :func:`decode` does, by a recording where there is one.

    Args:
        recorder: what records; its device decides where ``auto`` tries.

    Attributes:
        recordings: by signature, the last one that was used at the end.
    """

    def __init__(self, recorder: type[Recorder] = CudaRecorder) -> None:
        self.recorder = recorder
        self.recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._unlike = 0  # draws that no recording fitted, less those that one did
        self._stopped = self._warned = False

    def __reduce__(self) -> tuple[type[Decoder], tuple[type[Recorder]]]:
        return Decoder, (self.recorder,)  # a copy records for itself

    def check_device(self, device: torch.device) -> None:
        """Refuse one that nothing can be recorded on.

        Raises:
            ConfigError: naming it.
        """
        reason = _unfit_device(device, self.recorder.device_type)
        if reason is not None:
            raise _refusal(reason)

    def __call__(
        self,
        mode: DecodeGraph,
        policy: FastWeightLM,
        hidden: Tensor,
        state: State,
        targets: Tensor,
        uniform: Tensor,
    ) -> Decoded:
        """Sample tokens.

        Args:
            mode: ``never``: never by a recording; ``always``: what cannot be recorded is an error;
                ``auto``: it is decoded eagerly, with one warning if that was found in trying.
            policy: as in :func:`decode`, like those that follow.
            hidden: likewise.
            state: likewise.
            targets: likewise.
            uniform: likewise.

        Raises:
            ConfigError: with ``always``, where it cannot be recorded.
        """
        check_choice("Forked", "decode_graph", mode, get_args(DecodeGraph))
        unfit = _unfit_device(hidden.device, self.recorder.device_type) is not None
        if mode == "never" or (mode == "auto" and unfit) or not hidden.numel():
            return decode(policy, hidden, state, targets, uniform)
        inputs = self._inputs(mode, policy, hidden, state, targets, uniform)
        if inputs is None:
            return decode(policy, hidden, state, targets, uniform)
        if mode == "auto" and self._stopped:  # as a run that goes on from here would draw
            return inputs.decode(policy)
        key = form_of(inputs), surroundings_of(policy, hidden.device)
        if key in self.recordings:
            self._unlike = max(self._unlike - 1, 0)
            self.recordings.move_to_end(key)
            return self.recordings[key].draw(inputs)
        if key in self._seen:
            return self._first(mode, key, policy, inputs)
        self._remember(mode, key)
        return inputs.decode(policy)

    def _inputs(
        self,
        mode: DecodeGraph,
        policy: FastWeightLM,
        hidden: Tensor,
        state: State,
        targets: Tensor,
        uniform: Tensor,
    ) -> _Inputs | None:
        """What a recording would be given, or None where these cannot be recorded."""
        reason = _obstacle(policy, hidden.device, self.recorder.device_type)
        if reason is None:
            forms = (layer.detach().for_graph(targets.shape[1]) for layer in state.layers)
            layers = tuple(form for form in forms if form is not None)
            if len(layers) < len(state.layers):  # others may be, of the same model and sizes
                self._remember(mode, None)
                return None
            inputs = _Inputs(hidden, layers, state.num_tokens, targets, uniform)
            reason = _unrecordable(inputs)
            if reason is None:
                return inputs
        if mode == "always":
            raise _refusal(reason)
        return None

    def _remember(self, mode: DecodeGraph, key: Hashable) -> None:
        """Count a draw that no recording fits, and its signature unless it is None."""
        if mode == "auto" and self._stopped:
            return
        if key is not None:
            self._seen.add(key)
        self._unlike += 1
        if self._unlike < PATIENCE:
            return
        self._unlike = 0
        self._seen.clear()
        if mode == "auto":
            self._stop(SELDOM)
        elif not self._warned:
            self._warned = True
            warnings.warn(f"most draws are decoded without a CUDA graph: {SELDOM}", stacklevel=5)

    def _first(
        self, mode: DecodeGraph, key: Hashable, policy: FastWeightLM, inputs: _Inputs
    ) -> Decoded:
        """Record, and compare with eager decoding, which is what is returned."""
        while len(self.recordings) >= KEPT:  # before: a new one needs the memory
            self.recordings.popitem(last=False)
        self._seen.remove(key)
        try:
            made, eager = record(policy, inputs, self.recorder(inputs.hidden.device))
        # What can fail there is CUDA's, Triton's and torch's own; what fails without a recording
        # too is raised by the eager decoding below.
        except Exception as error:
            reason = f"recording failed: {deepest_reason(error)}"
            if mode == "always":
                raise _refusal(reason) from error
            self._stop(reason)
            return inputs.decode(policy)
        if not _agree(made.outputs, eager):
            reason = "the recording drew other tokens, or with other probabilities, than decoding"
            if mode == "always":
                raise _refusal(reason)
            self._stop(reason)
        else:
            self.recordings[key] = made
        return eager

    def _stop(self, reason: str) -> None:
        self._stopped = True
        self.recordings.clear()
        self._seen.clear()
        warnings.warn(
            f"decoding goes on without a CUDA graph: {reason}. "
            f"{KEY}: never silences this; always makes it an error",
            stacklevel=4,
        )


class Recording(NamedTuple):
    """Decoding of one signature, and where it reads and writes."""

    recorder: Recorder
    inputs: _Inputs
    outputs: Decoded

    @torch.no_grad()
    def draw(self, inputs: _Inputs) -> Decoded:
        """What :func:`decode` would return for other inputs of the same signature."""
        for place, value in zip(_tensors(self.inputs), _tensors(inputs), strict=True):
            place.copy_(value)
        self.recorder.replay()
        return _leaving(self.outputs)


@torch.no_grad()
def record(policy: FastWeightLM, inputs: _Inputs, recorder: Recorder) -> tuple[Recording, Decoded]:
    """A recording that has drawn from these inputs, and what eager decoding of them gives."""
    places = map_tensors(Tensor.clone, inputs)
    work = partial(places.decode, policy)
    eager = recorder.warm_up(work)
    # Copies of weights that autocast keeps from before would be recorded, and never be made again;
    # those of the recording belong to it alone.
    torch.clear_autocast_cache()
    try:
        made = Recording(recorder, places, recorder.record(work))
    finally:  # also where it fails: they hold anything
        torch.clear_autocast_cache()
    recorder.replay()
    return made, eager


def _obstacle(policy: FastWeightLM, device: torch.device, device_type: str) -> str | None:
    """Why no decoding of this model can be recorded, or None."""
    unfit = _unfit_device(device, device_type)
    if unfit is not None:
        return unfit
    if any(isinstance(module, FSDPModule) for module in policy.modules()):
        return "sharded weights (FSDP2) are put together at other places each time"
    return None


def _unrecordable(inputs: _Inputs) -> str | None:
    """What about them cannot be recorded, or None."""
    try:
        form_of(inputs)
    except TypeError as error:
        return str(error)
    if any(x.device != inputs.hidden.device for x in _tensors(inputs)):
        return "a state holds tensors of another device"
    return None


def _unfit_device(device: torch.device, device_type: str) -> str | None:
    if device.type == device_type:
        return None
    return f"the model is on {device.type}, and CUDA graphs are of CUDA devices"


def _tensors(inputs: _Inputs) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(keep, inputs)
    return found


def _leaving(outputs: Decoded) -> Decoded:
    """Copies: the next replay writes to the same places."""
    return map_tensors(Tensor.clone, outputs)


def _agree(one: Decoded, other: Decoded) -> bool:
    near = all(
        torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        for a, b in ((one.logprobs, other.logprobs), (one.target_logprobs, other.target_logprobs))
    )
    return near and torch.equal(one.tokens, other.tokens)


def _refusal(reason: str) -> ConfigError:
    return ConfigError(
        f"decoding cannot be a CUDA graph: {reason}",
        where=KEY,
        allowed="always, where CUDA graphs can be made; auto decodes without one elsewhere",
        way_out="auto or never",
    )
