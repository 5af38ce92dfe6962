"""Rows of tasks for Lightning: training with answers, validation, test and predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from refine_pl.chat import Chat, ChatOption, ChatTemplate
from refine_pl.data.cache_files import digest_of
from refine_pl.data.data_module import ResumableData
from refine_pl.data.loader import ResumableLoader
from refine_pl.data.paths import named_by
from refine_pl.data.tasks.base import TaskSource, check_unique
from refine_pl.data.tasks.encoding import Encoding, OverLong
from refine_pl.data.tasks.task_set import TaskSet, WholeBatches, collate_tasks
from refine_pl.errors import ConfigError
from refine_pl.evaluation.tasks import register_rules
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer

_SETTINGS = (
    "rows, tokenizer, max_prompt_tokens, over_long, answer_separator, answer_eos, chat_template, "
    "budget, seed and batch_size"
)

_MAKING = "rows of RULER are made by `refine-pl prepare ruler_qa`, from files of SQuAD and HotpotQA"

# The sets that a command of Lightning uses; it must have the first.
_COMMANDS = {
    "fit": ("training", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class TaskData(ResumableData):
    """Prompts with their answers.

    Training batches are shuffled, are the same on any number of ranks, and a run resumes at the
    exact batch that it stopped at. Test and predict batches keep the order of the rows and are not
    divided between ranks, so results do not depend on their number.

    Args:
        tokenizer: text to token ids.
        training: sources by name, for ``fit``.
        validation: sources by name, for ``fit`` and ``validate``.
        test: sources by name, for ``test``.
        predict: sources by name, for ``predict``.
        max_prompt_tokens: the most tokens of a prompt; any number if not set.
        over_long: ``cut_middle`` takes tokens out of the middle of longer prompts, and counts them;
            ``refuse`` stops at the first one.
        answer_eos: whether an answer that is trained on ends with the end-of-text token; in a chat
            template with the token that ends its turns.
        answer_separator: text between prompt and answer; ``auto`` is a space unless the prompt ends
            or the answer begins with white space, and in a chat template what that writes there.
        chat_template: ``auto`` wraps prompts in the tokenizer's chat template, as the message of a
            user, if it has one; ``none`` takes them as they are.
        chat_template_kwargs: variables of the template, for example ``enable_thinking: false``.
        budget: the most tokens of an answer, instead of each row's own number.
        rules: how tasks of your own are scored: by task the name of a rule or the import path of a
            function, or ``{rule: ..., cut: ...}``; see :func:`refine_pl.evaluation.register`.
        batch_size: rows of a training batch, over all ranks together.
        validation_batch_size: rows of a validation batch, over all ranks; ``batch_size`` if not
            set.
        test_batch_size: rows of a test or predict batch, on each rank; ``batch_size`` if not set.
        seed: of the order of training rows.
        num_workers: processes that read ahead; rows are in memory, so 0 is seldom slow.
        cache_dir: where generated rows are kept; ``$REFINE_PL_CACHE`` or ``~/.cache/refine-pl`` if
            not set.

    Attributes:
        skip: ids of rows that test and predict leave out, because they are answered already.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        training: dict[str, TaskSource] | None = None,
        validation: dict[str, TaskSource] | None = None,
        test: dict[str, TaskSource] | None = None,
        predict: dict[str, TaskSource] | None = None,
        max_prompt_tokens: PositiveInt | None = None,
        over_long: OverLong = "cut_middle",
        answer_eos: bool = True,
        answer_separator: str = "auto",
        chat_template: ChatTemplate = "auto",
        chat_template_kwargs: dict[str, ChatOption] | None = None,
        budget: PositiveInt | None = None,
        rules: dict[str, str | dict[str, str]] | None = None,
        batch_size: PositiveInt = 8,
        validation_batch_size: PositiveInt | None = None,
        test_batch_size: PositiveInt | None = None,
        seed: int = 0,
        num_workers: NonNegativeInt = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, validation_batch_size, seed, num_workers)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have none left
        register_rules(rules or {})
        self.tokenizer = tokenizer
        given = {"training": training, "validation": validation, "test": test, "predict": predict}
        self.task_sources = {name: dict(sources or {}) for name, sources in given.items()}
        self.encoding = Encoding(max_prompt_tokens, over_long, answer_separator, answer_eos)
        self.chat_template, self.chat_template_kwargs = chat_template, chat_template_kwargs
        self.budget = budget
        self.test_batch_size = test_batch_size or batch_size
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.skip: frozenset[str] = frozenset()
        self._read: dict[str, tuple[list[TaskRow], list[str]]] = {}
        self._sets: dict[str, TaskSet] = {}
        self._current: tuple[str, ...] = ()

    def prepare_data(self) -> None:
        """Generate what is not in the cache, before the other ranks look for it."""
        for name in self._needed(None if self.trainer is None else self.trainer.state.fn):
            self._source_rows(name)

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the rows of a command of Lightning; all that are given if ``None``.

        Raises:
            DataError: a row cannot be used, has no answers to be scored by, or ranks see different
                ones.
            ConfigError: the command has no rows, or a batch cannot be shared evenly.
        """
        names = self._needed(stage)
        new = [name for name in names if name not in self._sets]
        encoding = replace(self.encoding, chat=self._chat)
        for name in new:
            rows = self._source_rows(name)
            self._sets[name] = TaskSet(name, *rows, self.tokenizer, encoding)
        self._current = names
        self._check(names)
        for name in new:
            rank_zero_info(self._summary(name))

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of prompts and answers; an incomplete last one is left out."""
        rows = self._set("training", "fit")
        fingerprint = digest_of(rows.content_hash, self.seed, self.batch_size)
        return self.loader(rows, collate_tasks, fingerprint, _SETTINGS)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Every validation row, in order."""
        if not self.validates:
            return []
        return self.loader(self._set("validation", "validate"), collate_tasks)

    def test_dataloader(self) -> WholeBatches:
        """Whole batches of test rows, without those of ``skip``."""
        return self._whole_batches("test")

    def predict_dataloader(self) -> WholeBatches:
        """Whole batches of predict rows, without those of ``skip``."""
        return self._whole_batches("predict")

    def describe(self) -> dict[str, str | int | float]:
        """What the data of the current command are, for logs and reports."""
        if not self._current:
            self.setup()
        described: dict[str, str | int | float] = {
            "tokenizer": self.tokenizer.label,
            "data_hash": self.data_hash[:12],
        }
        if self.tokenizer.chat_template is not None:
            chat = self._chat
            described["chat_template"] = "none" if chat is None else chat.describe()
        for name in self._current:
            rows = self._sets[name]
            described[f"{name}_sources"] = ", ".join(
                f"{key}: {source.label}" for key, source in self.task_sources[name].items()
            )
            tasks = dict.fromkeys(encoded.row.task for encoded in rows.rows)
            described[f"{name}_tasks"] = ", ".join(tasks)
            described |= {f"{name}_{key}": value for key, value in rows.describe().items()}
        return described

    @property
    def validates(self) -> bool:
        """Whether there are validation rows."""
        return bool(self.task_sources["validation"])

    @property
    def data_hash(self) -> str:
        """A digest of rows, tokenizer and limits of the current command."""
        hashes = [self._sets[name].content_hash for name in self._current]
        # That of a single set is the one that the run prints.
        return hashes[0] if len(hashes) == 1 else digest_of(hashes)

    @property
    def task_rows(self) -> tuple[TaskRow, ...]:
        """The rows of the current command in their order, those of ``skip`` among them."""
        return tuple(encoded.row for name in self._current for encoded in self._sets[name].rows)

    @property
    def sequence_length(self) -> int | None:
        """Tokens of the command's longest prompt; before ``setup``, ``max_prompt_tokens``."""
        if not self._current:
            return self.encoding.max_prompt_tokens
        return self._sets[self._current[0]].longest_prompt

    @cached_property
    def _chat(self) -> Chat | None:
        return Chat.of(self.tokenizer, self.chat_template, self.chat_template_kwargs)

    def _needed(self, stage: str | None) -> tuple[str, ...]:
        """The names of the sets that a command uses."""
        given = [name for name, sources in self.task_sources.items() if sources]
        names = _COMMANDS[stage] if stage else given or ["training"]
        needed = names[0]
        if needed not in given:
            raise ConfigError(
                f"the data have no {needed} rows" if stage else "the data have no rows",
                where=f"data.init_args.{needed}",
                allowed="one or more sources by name",
                way_out=f"{needed}: {{mine: {{class_path: refine_pl.data.RowFiles, init_args: "
                "{paths: rows.jsonl}}}",
            )
        return tuple(name for name in names if name in given)

    def _source_rows(self, name: str) -> tuple[list[TaskRow], list[str]]:
        """The rows of a set's sources, in their order, and what people should know about them."""
        if name not in self._read:
            notes: list[str] = []
            rows = self._rows_of(name, notes)
            way_out = "another task, length, seed, file name or id_column for one of them"
            self._read[name] = check_unique(rows, way_out), notes
        return self._read[name]

    def _rows_of(self, set_name: str, notes: list[str]) -> Iterator[tuple[str, TaskRow]]:
        """Where each row is from, and the row; notes are added while they are read."""
        for name, source in self.task_sources[set_name].items():
            source.cache_dir, source.notify = self.cache_dir, rank_zero_info
            with named_by(f"{set_name}.{name}.init_args.paths of the data", _MAKING):
                rows = source.rows(self.tokenizer)
            for row in rows:
                own = row._replace(max_gen_tokens=self.budget or row.max_gen_tokens)
                yield f"source {name!r} ({source.label})", own
            notes += (f"{name}: {note}" for note in source.notes)

    def _set(self, name: str, stage: str) -> TaskSet:
        if name not in self._sets:
            self.setup(stage)
        return self._sets[name]

    def _whole_batches(self, name: str) -> WholeBatches:
        return WholeBatches(
            self._set(name, name).rows, self.test_batch_size, *self.ranks, skip=self.skip
        )

    def _check(self, names: tuple[str, ...]) -> None:
        shared = {}
        if "training" in names:
            way_out = "lower batch_size, or use more rows"
            rows = len(self._sets["training"])
            self.check_training(rows, "training rows", "data.batch_size", way_out)
            shared["batch_size"] = self.batch_size
        for name in names:
            if name in ("validation", "test"):
                self._sets[name].refuse_unanswered()
        if "validation" in names:
            shared["validation_batch_size"] = self.validation_batch_size
            self._check_validation_ranks()
        self.check_ranks(shared, self.data_hash, "set of rows", ", ".join(names))
        if {"training", "validation"} <= set(names):
            self._warn_of_shared_prompts()

    def _check_validation_ranks(self) -> None:
        rows, (_, num_ranks) = len(self._sets["validation"]), self.ranks
        if rows % num_ranks:  # some ranks would wait for the others' forward
            raise ConfigError(
                f"{rows:,} validation rows cannot be divided by {num_ranks} ranks",
                where="data.validation",
                allowed=f"a multiple of {num_ranks} rows",
                way_out="another number of rows, or fewer devices",
            )

    def _warn_of_shared_prompts(self) -> None:
        trained = {row.prompt for row in self._read["training"][0]}
        shared = [row.id for row in self._read["validation"][0] if row.prompt in trained]
        if shared:
            rank_zero_warn(
                f"{len(shared):,} validation prompts are training prompts as well, the first is "
                f"that of row {shared[0]}. Use other files, or another seed where rows are "
                "generated."
            )

    def _summary(self, name: str) -> str:
        rows = self._sets[name]
        title = f"Data: {len(rows):,} {name} rows (hash {rows.content_hash[:12]}) by "
        lines = [title + self.tokenizer.label]
        if name == "training":
            lines.append(self.epoch_line(len(rows), "rows"))
        if self._chat is not None:
            lines.append("  prompts are wrapped in the tokenizer's chat template")
        return "\n".join([*lines, *(f"  {line}" for line in rows.summary())])
