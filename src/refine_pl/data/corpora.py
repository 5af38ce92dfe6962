"""Corpora: sources of named documents, ``(name, text)`` pairs in a fixed order.

Heavy libraries load only when documents are read.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeInt

from refine_pl.data.cache_files import digest_of, file_hash
from refine_pl.data.file_records import FileReader, FileRecord, OnBadRow, RowReader, decoded
from refine_pl.errors import (
    DataError,
    deepest_reason,
    download_command,
    nearest,
    refuse_missing_folder,
)

if TYPE_CHECKING:
    from datasets import Dataset

# Tests are left out because distributions do, so that the corpus depends on the version only.
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class Corpus(RowReader, ABC):
    """Named documents.

    A corpus of your own is a subclass with one method, :meth:`read`, in a file of the folder you
    start ``refine-pl`` from; name it in YAML as ``class_path: my_corpus.MyCorpus``.
    """

    @abstractmethod
    def read(self) -> Iterator[tuple[str, str]]:
        """Yield ``(name, text)``, in the same order every time.

        Report what cannot be used with :meth:`bad_row`.
        """

    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield ``(name, text)`` and count the skipped rows.

        Raises:
            DataError: a row cannot be used, or there is not one document.
        """
        return self.counted(self.read, "document")

    def stream(self, row: int = 0) -> Iterator[tuple[int, str, str]]:
        """Yield ``(next row, name, text)`` from a row on, for reading on from there later.

        Here rows are documents, and those before are read again, which is quick beside tokenizing.

        Args:
            row: 0, or a next row that was given before.
        """
        for number, (name, text) in enumerate(self.documents(), start=1):
            if number > row:
                yield number, name, text

    def content_hash(self, memo_dir: Path | None = None) -> str:
        """A digest of all that decides what :meth:`documents` yields; costs one reading.

        Args:
            memo_dir: folder where digests of large, unchanged files may be remembered.
        """
        digest = hashlib.blake2b(digest_size=16)
        for document in self.documents():
            for part in document:
                encoded = part.encode()
                # The length keeps ("ab", "c") apart from ("a", "bc").
                digest.update(len(encoded).to_bytes(8, "little"))
                digest.update(encoded)
        return digest.hexdigest()


@dataclass
class Files(FileReader, Corpus):
    """Documents from files.

    A ``.txt`` file is one document, each line of a ``.jsonl`` file and each row of a ``.parquet``
    file is one. Files are read in the order given, those of a pattern sorted by path; a file that
    is named twice is read once. Large files are read piece by piece.

    Args:
        paths: paths or patterns (``*``, ``?``, ``[...]``, and ``**`` for any depth), relative to
            the folder that ``refine-pl`` was started from.
        text_column: the key of a ``.jsonl`` line, or the column of a ``.parquet`` file.
        on_bad_row: ``error`` stops at a row without usable text; ``skip`` leaves it out and counts.
    """

    paths: str | list[str]
    text_column: str = "text"
    on_bad_row: OnBadRow = "error"

    def content_hash(self, memo_dir: Path | None = None) -> str:
        """A digest of the files' names and bytes and of the settings that choose the text."""
        files = [(name, file_hash(Path(name), memo_dir)) for name in self.files()]
        return digest_of(self.text_column, self.on_bad_row, files)

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield documents named by path, and by line (from 1) or row (from 0) where there are."""
        for name in self.files():
            if name.endswith(".txt"):
                yield from self.usable([name], _whole)
            else:
                yield from self.read_file(name, [self.text_column], self._document)

    def _document(self, record: FileRecord) -> tuple[str, str]:
        text = record.text(self.text_column, "text_column", blank=True)
        return f"{record.file}:{record.number}", text


def _whole(name: str) -> tuple[str, str]:
    return name, decoded(Path(name).read_bytes(), name)


@dataclass
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
        streaming: read rows while they are downloaded, for
            :class:`~refine_pl.data.StreamedText`; there is no local copy.
        on_bad_row: ``error`` stops at a row without usable text; ``skip`` leaves it out and counts.
    """

    name: str
    split: str = "train"
    text_column: str = "text"
    subset: str | None = None
    revision: str | None = None
    data_files: str | list[str] | None = None
    streaming: bool = False
    on_bad_row: OnBadRow = "error"

    def __post_init__(self) -> None:
        self.name = str(Path(self.name).expanduser()) if self.name.startswith("~") else self.name

    @property
    def label(self) -> str:
        """The dataset and the split."""
        return f"HubDataset {self.name}, split {self.split}"

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield documents named ``dataset/split:row``, rows counted from 0."""
        return self.usable(self._records(), self._document)

    def stream(self, row: int = 0) -> Iterator[tuple[int, str, str]]:
        """As for every corpus; rows are those of the dataset, and those before are skipped."""
        if not self.streaming:
            yield from super().stream(row)
            return
        self.skipped_rows, self.first_skipped = 0, None
        numbered = self.usable(self._streamed(row), lambda record: (record, self._document(record)))
        for record, (name, text) in numbered:
            yield record.number + 1, name, text

    def _streamed(self, row: int = 0) -> Iterator[FileRecord]:
        label, rows = self.label, self._load()
        for number, values in enumerate(rows.skip(row) if row else rows, start=row):
            where = f"{label}, row {number}"
            yield FileRecord(label, where, number, values, list(values), of_all=True)

    def _records(self) -> Iterator[FileRecord]:
        if self.streaming:
            yield from self._streamed()
            return
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

        folder = Path(self.name)
        refuse_missing_folder(self.name, "the dataset")
        try:
            if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
                return self._saved_split(datasets.load_from_disk(self.name))
            return datasets.load_dataset(
                self.name,
                self.subset,
                split=self.split,
                revision=self.revision,
                data_files=self.data_files,
                streaming=self.streaming,
            )
        except DataError:
            raise
        # ValueError for a wrong split or subset, OSError for what is not there, RuntimeError for a
        # script, and whatever a reader of files raises: all that is at work here is the library.
        except Exception as error:
            # The library's way to say that it found no rows.
            reason = "no rows" if isinstance(error, StopIteration) else deepest_reason(error)
            file = _file_in_hand(error)
            split = f"split {self.split!r}, subset {self.subset!r}, revision {self.revision!r}"
            raise DataError(
                f"the dataset {self.name!r} cannot be loaded: {reason}",
                where=split if file is None else f"{file} ({split})",
                allowed="a dataset of the hub, a folder of data files with the same columns, a "
                "folder of save_to_disk",
                way_out="look at the files and the split; refine_pl.data.Files reads files one by "
                "one"
                if folder.is_dir()
                else "check the name and the split; without a network only local folders and "
                "datasets that were downloaded before can be loaded: "
                + download_command(self.name, "dataset"),
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


def _file_in_hand(error: BaseException) -> str | None:
    """The file that a reader of ``datasets`` was at; its errors often do not name it."""
    found: str | None = None
    current: BaseException | None = error
    while current is not None:
        for frame, _ in traceback.walk_tb(current.__traceback__):
            reader = getattr(frame.f_locals.get("generator"), "gi_frame", None)
            for values in (frame.f_locals, reader.f_locals if reader else {}):
                file = values.get("file")
                if isinstance(file, str) and os.path.isfile(file):
                    found = file
        current = current.__cause__
    return found


@dataclass
class StandardLibrary(Corpus):
    """The ``.py`` files of the running Python's standard library, in the order of their paths.

    About 12 MB in 730 documents for Python 3.11. Installed packages and test folders are left out,
    and so is a file that is not UTF-8. Another version of Python is another corpus: its hash, which
    every run logs, tells them apart.

    Args:
        min_bytes: smaller files are left out.
    """

    min_bytes: NonNegativeInt = 0
    on_bad_row = "skip"

    @property
    def label(self) -> str:
        """The version is part of the name, because it decides the content."""
        return f"StandardLibrary of Python {platform.python_version()}"

    def read(self) -> Iterator[tuple[str, str]]:
        """Yield the path under the library's folder, and the file's text."""
        root = Path(sysconfig.get_path("stdlib"))
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
        if not names:
            raise DataError(
                "this Python has no standard library in source form",
                where=str(root),
                way_out="use another corpus, for example refine_pl.data.Files",
            )
        used = (
            name
            for name in names
            # _sysconfigdata holds the paths of the machine that Python was built on.
            if not (_LEFT_OUT.intersection(name.split("/")) or name.startswith("_sysconfigdata"))
            and (root / name).stat().st_size >= self.min_bytes
        )
        return self.usable(used, lambda name: (name, decoded((root / name).read_bytes(), name)))
