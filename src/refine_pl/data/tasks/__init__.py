"""Rows of tasks: a prompt and its answers, from files or generated; one source per file.

Heavy libraries load only when rows are read.
"""

from refine_pl.data.tasks.base import TaskSource
from refine_pl.data.tasks.needles import NeedleInAHaystack
from refine_pl.data.tasks.question_answering import MultiDocumentQA
from refine_pl.data.tasks.row_files import RowFiles

__all__ = ["MultiDocumentQA", "NeedleInAHaystack", "RowFiles", "TaskSource"]
