"""The sources of Python's standard library: real text that every machine already has."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jsonargparse.typing import NonNegativeInt

from refine_pl.data.corpora.base import Corpus
from refine_pl.errors import DataError

# Tests are left out because distributions do, so that the corpus depends on the version only.
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class StandardLibrary(Corpus):
    """The ``.py`` files of the running Python's standard library, in the order of their paths.

    About 12 MB in 730 documents for Python 3.11. Installed packages and test folders are left out,
    and so is a file that is not UTF-8. Another version of Python is another corpus: its hash, which
    every run logs, tells them apart.

    Args:
        min_bytes: smaller files are left out.
    """

    on_bad_row = "skip"

    def __init__(self, min_bytes: NonNegativeInt = 0) -> None:
        self.min_bytes = min_bytes

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
        for name in names:
            # _sysconfigdata holds the paths of the machine that Python was built on.
            if _LEFT_OUT.intersection(name.split("/")) or name.startswith("_sysconfigdata"):
                continue
            content = (root / name).read_bytes()
            if len(content) < self.min_bytes:
                continue
            try:
                yield name, content.decode()
            except UnicodeDecodeError as error:
                self.bad_row(f"not UTF-8 at byte {error.start}", where=name)
