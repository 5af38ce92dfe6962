"""What a module saves in a checkpoint, and what it reads from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from refine_pl.adapters import (
    Attached,
    adapter_of,
    plain_adapter,
    saved_adapter,
    with_base,
    without_base,
)
from refine_pl.backbones import FastWeightLM
from refine_pl.rewards.from_function import functions_refused
from refine_pl.tokenizers import Tokenizer
from refine_pl.training.checks import check_state
from refine_pl.training.frozen_copies import fit_copy
from refine_pl.training.measured_module import MeasuredModule
from refine_pl.training.phases import Phase
from refine_pl.training.resuming import (
    STATE_KEY,
    check_optimizer,
    class_path,
    leave_optimizer_out,
)
from refine_pl.training.sharding import class_name
from refine_pl.training.trusted_classes import load_with_known_classes


class SavedModule(MeasuredModule):
    """A measured module whose training goes on from a checkpoint.

    Attributes:
        fresh_optimizer: whether a resumed run begins with an optimizer that has no state yet, and
            at the start of the schedule of its rate.
        resumed_at: iterations that the checkpoint had made, or None.
    """

    reference: FastWeightLM | None
    adapter: Attached | None
    fresh_optimizer: bool = False
    resumed_at: int | None = None
    _resumed_from: dict[str, Any] | None = None  # a checkpoint that is being loaded

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Lightning's, but nothing that the checkpoint names is imported or called for it.

        Raises:
            CheckpointError: it names something else than a class that is known or imported.
        """
        load = super().load_from_checkpoint
        with functions_refused():
            module: Self = load_with_known_classes(lambda: load(*args, **kwargs))
            return module

    def save_plain_hyperparameters(self) -> None:
        """Keep the model's part of a command line's configuration, or Python's plain values."""
        parts = ["backbone", "selector", "generator", "rewards", "advantage", "policy_loss"]
        others = ["adapter", "answering", "validation", "optimizer", "lr_scheduler"]
        self.save_hyperparameters(ignore=[*parts, *others], logger=False)
        if "_instantiator" in self.hparams:
            self.save_hyperparameters(logger=False)
            if self.hparams.get("adapter"):  # without peft's forty other options
                self.hparams["adapter"] = plain_adapter(self.hparams["adapter"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters, and what the model and the optimizer were made from.

        Raises:
            NotFiniteError: the weights are not finite; no good checkpoint is written over.
        """
        self.check_saved_weights()
        state: dict[str, Any] = {**self.counters.state_dict(), "backbone": self.policy.config()}
        spec = self.tokenizer.spec() if isinstance(self.tokenizer, Tokenizer) else None
        if spec is not None:
            state["tokenizer"] = spec  # for test, predict and lm-eval
        if self.yardstick is not None:
            state["stage"] = self.stage  # in which its weights were copied
        if self.trainer.optimizers:
            state["optimizer"] = class_path(self.trainer.optimizers[0])
        if self.adapter is not None:
            state["adapter"] = saved_adapter(self.adapter)
        if self.adapter is not None and self.adapter.base is not None:
            checkpoint["state_dict"] = without_base(checkpoint["state_dict"], self)
        elif carried := getattr(self.policy, "carried", None):
            state["carried"] = dict(carried)  # for the export; a base has them itself
        checkpoint[STATE_KEY] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the counters, and make the frozen copies fit what this run needs."""
        self.counters.load_state_dict(checkpoint.get(STATE_KEY, {}))
        self.stage = checkpoint.get(STATE_KEY, {}).get("stage")
        self.resumed_at = self.iteration
        state = checkpoint.get("state_dict")
        if state is None:  # a sharded run has loaded its weights, and its optimizer, already
            return
        self._resumed_from = checkpoint
        state = fit_copy(state, "reference", self.reference is not None)
        state = fit_copy(state, "yardstick", self.yardstick is not None)
        saved = adapter_of(checkpoint.get(STATE_KEY) or {})
        state = with_base(state, self, saved, self.adapter)
        checkpoint["state_dict"] = self._with_own_parts(state) if self._only_answers() else state

    def resume_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse the state of another optimizer in the checkpoint that is being loaded.

        Raises:
            CheckpointError: naming both.
        """
        checkpoint, self._resumed_from = self._resumed_from, None
        if checkpoint is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        note = check_optimizer(checkpoint, optimizer, self.fresh_optimizer)
        if note:
            leave_optimizer_out(checkpoint)
            self.print(note)

    def _only_answers(self) -> bool:
        """Whether nothing of this run needs the parts of training."""
        if self._trainer is None or self.trainer.state.fn not in (
            TrainerFn.TESTING,
            TrainerFn.PREDICTING,
        ):
            return False
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return not any(isinstance(callback, Phase) for callback in callbacks)

    def _with_own_parts(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint's state with the parts of this module, say a reward model, for its own."""
        own = {k: v for k, v in self.state_dict().items() if k.startswith("refine_step.")}
        return {k: v for k, v in state.items() if not k.startswith("refine_step.")} | own

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in torch, but a checkpoint of another architecture is an error that says so.

        Raises:
            CheckpointError: naming the first keys that do not fit.
        """
        check_state(self.state_dict(), state_dict, class_name(self.policy), strict)
        return super().load_state_dict(state_dict, strict, assign)
