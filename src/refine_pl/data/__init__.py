"""Where sequences come from: corpora, tasks, tokenizers, and the data modules that join them.

The names below are loaded when they are first used, so that a corpus, a task source or a
tokenizer can be imported without Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refine_pl.lazy import lazy_names
from refine_pl.tokenizers import Bytes, HubTokenizer, Tokenizer

if TYPE_CHECKING:
    from refine_pl.data.corpora import Corpus, Files, HubDataset, StandardLibrary
    from refine_pl.data.loader import BatchKey, BatchOrder, ResumableLoader, TokenSequence
    from refine_pl.data.mixture import Mixture
    from refine_pl.data.stage_data import StageData
    from refine_pl.data.streaming import StreamedText
    from refine_pl.data.task_data import TaskData
    from refine_pl.data.tasks import MultiDocumentQA, NeedleInAHaystack, RowFiles, TaskSource
    from refine_pl.data.text import TextData

__all__ = [
    "BatchKey",
    "BatchOrder",
    "Bytes",
    "Corpus",
    "Files",
    "HubDataset",
    "HubTokenizer",
    "Mixture",
    "MultiDocumentQA",
    "NeedleInAHaystack",
    "ResumableLoader",
    "RowFiles",
    "StageData",
    "StandardLibrary",
    "StreamedText",
    "TaskData",
    "TaskSource",
    "TextData",
    "TokenSequence",
    "Tokenizer",
]

_HOMES = {
    "corpora": "Corpus Files HubDataset StandardLibrary",
    "mixture": "Mixture",
    "loader": "BatchKey BatchOrder ResumableLoader TokenSequence",
    "stage_data": "StageData",
    "streaming": "StreamedText",
    "task_data": "TaskData",
    "tasks": "MultiDocumentQA NeedleInAHaystack RowFiles TaskSource",
    "text": "TextData",
}

__getattr__, __dir__ = lazy_names(
    __name__, {name: home for home, names in _HOMES.items() for name in names.split()}
)
