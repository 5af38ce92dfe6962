"""Task sources of a few made up rows, and small TaskData on them."""

from __future__ import annotations

from refine_pl.data import Bytes, TaskData, TaskSource
from refine_pl.task_records import TaskRow


class Own(TaskSource):
    """Rows that differ everywhere."""

    def __init__(self, number: int = 10, name: str = "a", answers: bool = True) -> None:
        self.number = number
        self.name = name
        self.answers = answers

    def rows(self, tokenizer):
        self.notes = [f"{self.name} was read"]
        return [
            TaskRow(
                f"{self.name}{i}",
                self.name,
                f"{self.name} {'x' * i}{chr(65 + i)}:",
                (f"yes {i}", "no") if self.answers else (),
                4 + i,
                64 if i % 2 else None,
            )
            for i in range(self.number)
        ]


def task_data(**changes) -> TaskData:
    given = {"batch_size": 4}
    sources = {"training": {"a": Own(10)}, "validation": {"v": Own(4, "v")}}
    sources |= {"test": {"t": Own(7, "t")}, "predict": {"p": Own(5, "p", answers=False)}}
    return TaskData(Bytes(), **(given | sources | changes))
