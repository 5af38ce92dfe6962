"""Several data modules in one run: each stage of a schedule reads one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from lightning.pytorch import LightningDataModule

from refine_pl.data.streaming import StreamLoader
from refine_pl.errors import CheckpointError, ConfigError, check_choice
from refine_pl.tokenizers import Tokenizer

Plan = Sequence[tuple[str, int]]
"""``(source, batches)`` for each stage, in their order."""


class StageData(LightningDataModule):
    """Data modules by name; the stages of a schedule say which one they read.

    A source that several stages read goes on where the stage before stopped, through epochs of its
    own. Validation reads the held-out rows of every source, one loader each.

    Args:
        sources: data modules by name, for example :class:`TextData` and :class:`TaskData`. All of
            them need the same tokenizer.
    """

    def __init__(self, sources: dict[str, LightningDataModule]) -> None:
        super().__init__()
        if not sources:
            raise ConfigError(
                "the data have no sources", where="data.sources", allowed="one or more by name"
            )
        self.sources = dict(sources)
        self._plan: Plan | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all sources."""
        tokenizer: Tokenizer = next(iter(self._named("tokenizer").values()))
        return tokenizer

    @property
    def batch_size(self) -> int | None:
        """Sequences of a training batch over all ranks, or None if sources differ in it."""
        sizes = set(self._named("batch_size").values())
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def sequence_length(self) -> int | None:
        """Tokens of the longest sequence of any source, where it is known."""
        return max(self._named("sequence_length").values(), default=None)

    def set_plan(self, plan: Plan) -> None:
        """Say which source is read when; the schedule does it before training starts.

        Raises:
            ConfigError: there is no such source.
        """
        for name, _ in plan:
            check_choice("data.sources", "the source of a stage", name, self.sources)
        self._plan = plan

    def prepare_data(self) -> None:
        """Let every source prepare."""
        for source in self._attached(None if self.trainer is None else self.trainer.state.fn):
            source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set every source up.

        Raises:
            ConfigError: the command is not ``fit`` or ``validate``, or tokenizers differ.
        """
        if stage in ("test", "predict"):
            raise ConfigError(
                f"StageData has no rows to {stage}",
                where="data",
                allowed="fit, validate",
                way_out="data: refine_pl.data.TaskData",
            )
        self._check_tokenizers()
        for source in self._attached(stage):
            source.setup(stage)  # type: ignore[arg-type]

    def train_dataloader(self) -> PlannedLoader:
        """One pass over all stages.

        Raises:
            ConfigError: nobody said which source is read when.
        """
        if self._plan is None:
            raise ConfigError(
                "StageData does not know which stage reads which source",
                where="schedule.stages",
                way_out="a schedule of stages, each with iterations and a source",
            )
        used = dict(self._plan)
        loaders = {name: s.train_dataloader() for name, s in self.sources.items() if name in used}
        if endless := [name for name, each in loaders.items() if isinstance(each, StreamLoader)]:
            raise ConfigError(
                f"the source {endless[0]!r} is a stream, whose batches cannot be counted",
                where="data.sources",
                allowed="data with epochs: refine_pl.data.TextData, refine_pl.data.TaskData",
            )
        return PlannedLoader(loaders, self._plan)

    def val_dataloader(self) -> list[Any]:
        """The loader of every source that keeps rows for validation, in the order of sources."""
        loaders: list[Any] = []
        for source in self._attached():
            given = source.val_dataloader()
            loaders += given if isinstance(given, list) else [given]
        return loaders

    def _named(self, attribute: str) -> dict[str, Any]:
        """What an attribute is in the sources that have it."""
        found = {name: getattr(source, attribute, None) for name, source in self.sources.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _attached(self, stage: str | None = None) -> Iterator[LightningDataModule]:
        """The sources that a command of Lightning uses, with the trainer of this run."""
        for source in self.sources.values():
            source.trainer = self.trainer
            if stage != "validate" or getattr(source, "validates", True):
                yield source

    def _check_tokenizers(self) -> None:
        tokenizers = self._named("tokenizer")
        if missing := [name for name in self.sources if name not in tokenizers]:
            raise ConfigError(
                f"the source {missing[0]!r} has no tokenizer",
                where="data.sources",
                allowed="data modules with the attribute tokenizer",
            )
        (first, expected), *others = tokenizers.items()
        for name, tokenizer in others:
            if tokenizer.fingerprint != expected.fingerprint:
                raise ConfigError(
                    f"the sources {first!r} and {name!r} have different tokenizers",
                    where=f"data.sources: {expected.label}, {tokenizer.label}",
                    allowed="one tokenizer for one model",
                )


class PlannedLoader:
    """The training batches of several resumable loaders, one stage after the other.

    Its state is the number of batches that were given, and what they were given from. The place in
    every source follows from that, so nothing else needs to be saved.

    Args:
        loaders: :class:`ResumableLoader` by name.
        plan: ``(source, batches)`` for each stage, in their order.
    """

    def __init__(self, loaders: Mapping[str, Any], plan: Plan) -> None:
        self.loaders = dict(loaders)
        self._sources = [name for name, batches in plan for _ in range(batches)]
        self._given = 0

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Any]:
        # A generator: where to begin is settled when the first batch is asked for, as in
        # ResumableLoader. After the end of the plan there is nothing.
        given, planned = self._sources[: self._given], self._sources[self._given :]
        batches = {name: self._endless(name, given.count(name)) for name in self.loaders}
        for name in planned:
            batch = next(batches[name])
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """``batches`` given (over all ranks), and from which sources, with their fingerprints."""
        return {
            "batches": self._given,
            "given": self._given_from(self._given),
            "sources": {name: self._fingerprint(name) for name in self.loaders},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were given. What was planned after them may differ.

        Raises:
            CheckpointError: they would not be the same batches under this plan and these data.
        """
        given, before, known = int(state["batches"]), state["given"], state["sources"]
        used = [name for name, _ in before if name in self.loaders]
        changed = [name for name in used if self._fingerprint(name) != known.get(name)]
        if changed or before != self._given_from(given):
            raise CheckpointError(
                f"the data of source {changed[0]!r} differ from those of the checkpoint"
                if changed
                else f"the first {given:,} batches are planned otherwise than in the checkpoint",
                where="state of the training data in the checkpoint",
                allowed="the same sources and settings of the data, and the same stages up to the "
                "one that the checkpoint is in; what comes later, ranks and num_workers may differ",
                way_out="restore these settings, or start a new run from the checkpoint's weights",
            )
        self._given = given

    def _given_from(self, given: int) -> list[list[Any]]:
        """What the first ``given`` batches are read from; neighbours from one source are joined."""
        return [[name, len(list(same))] for name, same in groupby(self._sources[:given])]

    def _endless(self, name: str, start: int) -> Iterator[Any]:
        """The batches of a source from one on, epoch after epoch."""
        loader = self.loaders[name]
        epoch, batches = divmod(start, len(loader))
        loader.load_state_dict(loader.state_dict() | {"epoch": epoch, "batches": batches})
        while True:
            yield from loader

    def _fingerprint(self, name: str) -> str:
        return str(self.loaders[name].state_dict()["fingerprint"])
