"""A corpus is a source of named documents: ``(name, text)`` pairs in a fixed order."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from refine_pl.data.file_records import RowReader


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

    @property
    def label(self) -> str:
        """What people read in messages: the class and where its documents are."""
        return type(self).__name__

    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield ``(name, text)`` and count the skipped rows.

        Raises:
            DataError: a row cannot be used, or there is not one document.
        """
        self.begin()
        found = False
        for document in self.read():
            found = True
            yield document
        if not found:
            raise self.nothing(self.label, "document")

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
