"""Where sequences come from: corpora, tasks, tokenizers, and the data modules that join them.

The names below are loaded when they are first used, so that a corpus, a task source or a
tokenizer can be imported without Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refine_pl.lazy import lazy_names
from refine_pl.tokenizers import Bytes, HubTokenizer, Tokenizer

if TYPE_CHECKING:
    from refine_pl.data.collate import TokenSequence
    from refine_pl.data.corpora.base import Corpus
    from refine_pl.data.corpora.files import Files
    from refine_pl.data.corpora.hub_dataset import HubDataset
    from refine_pl.data.corpora.standard_library import StandardLibrary
    from refine_pl.data.loader import BatchKey, BatchOrder, ResumableLoader
    from refine_pl.data.stage_data import StageData
    from refine_pl.data.task_data import TaskData
    from refine_pl.data.tasks.base import TaskSource
    from refine_pl.data.tasks.needles import NeedleInAHaystack
    from refine_pl.data.tasks.question_answering import MultiDocumentQA
    from refine_pl.data.tasks.row_files import RowFiles
    from refine_pl.data.text import TextData

__all__ = [
    "BatchKey",
    "BatchOrder",
    "Bytes",
    "Corpus",
    "Files",
    "HubDataset",
    "HubTokenizer",
    "MultiDocumentQA",
    "NeedleInAHaystack",
    "ResumableLoader",
    "RowFiles",
    "StageData",
    "StandardLibrary",
    "TaskData",
    "TaskSource",
    "TextData",
    "TokenSequence",
    "Tokenizer",
]

_HOMES = {
    "BatchKey": "loader",
    "BatchOrder": "loader",
    "Corpus": "corpora.base",
    "Files": "corpora.files",
    "HubDataset": "corpora.hub_dataset",
    "MultiDocumentQA": "tasks.question_answering",
    "NeedleInAHaystack": "tasks.needles",
    "ResumableLoader": "loader",
    "RowFiles": "tasks.row_files",
    "StageData": "stage_data",
    "StandardLibrary": "corpora.standard_library",
    "TaskData": "task_data",
    "TaskSource": "tasks.base",
    "TextData": "text",
    "TokenSequence": "collate",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
