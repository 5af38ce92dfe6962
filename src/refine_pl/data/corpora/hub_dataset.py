"""Documents from a dataset of the Hugging Face hub, or from a local folder in its formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from refine_pl.data.corpora.base import Corpus
from refine_pl.data.file_records import FileRecord
from refine_pl.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset


class HubDataset(Corpus):
    """One split of a dataset that the ``datasets`` library can load.

    Args:
        name: name on the hub, a local folder of data files, or a folder of ``save_to_disk``.
        split: for example ``train``; slices such as ``train[:1%]`` work except after
            ``save_to_disk``.
        text_column: the column that holds the text.
        subset: the dataset's configuration, for datasets that have several.
        revision: branch, tag or commit on the hub.
        data_files: files or patterns inside ``name``, when only some are wanted.
        on_bad_row: ``error`` stops at a row without usable text; ``skip`` leaves it out and counts.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        text_column: str = "text",
        subset: str | None = None,
        revision: str | None = None,
        data_files: str | list[str] | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        self.name = str(Path(name).expanduser()) if name.startswith("~") else name
        self.split = split
        self.text_column = text_column
        self.subset = subset
        self.revision = revision
        self.data_files = data_files
        self.on_bad_row = on_bad_row

    @property
    def label(self) -> str:
        """The dataset and the split."""
        return f"HubDataset {self.name}, split {self.split}"

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield documents named ``dataset/split:row``, rows counted from 0."""
        return self.usable(self._records(), self._document)

    def _records(self) -> Iterator[FileRecord]:
        dataset = self._load()
        columns, label = dataset.column_names, self.label
        wanted = [self.text_column] if self.text_column in columns else columns
        for row, values in enumerate(dataset.select_columns(wanted)):
            yield FileRecord(label, f"{label}, row {row}", row, values, columns, of_all=True)

    def _document(self, record: FileRecord) -> tuple[str, str]:
        text = record.text(self.text_column, "text_column", blank=True)
        return f"{self.name}/{self.split}:{record.number}", text

    def _load(self) -> Dataset:
        import datasets
        from datasets.exceptions import DatasetsError

        folder = Path(self.name)
        try:
            if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
                return self._saved_split(datasets.load_from_disk(self.name))
            return datasets.load_dataset(
                self.name,
                self.subset,
                split=self.split,
                revision=self.revision,
                data_files=self.data_files,
            )
        # The library raises ValueError for a wrong split or subset, OSError for what is not there.
        except (OSError, ValueError, DatasetsError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"the dataset {self.name!r} cannot be loaded: {reason}",
                where=f"split {self.split!r}, subset {self.subset!r}, revision {self.revision!r}",
                allowed="a dataset of the hub, a folder of data files, a folder of save_to_disk",
                way_out="check the name and the split; without a network only local folders and "
                "datasets that were downloaded before can be loaded",
            ) from error

    def _saved_split(self, saved: Any) -> Dataset:
        splits = dict(saved) if isinstance(saved, dict) else {str(saved.split or self.split): saved}
        if self.split not in splits:
            guess = nearest(self.split, splits) or next(iter(splits), None)
            raise DataError(
                f"no split {self.split!r}",
                where=self.name,
                allowed=", ".join(splits),
                way_out=f"split: {guess}",
            )
        return splits[self.split]
