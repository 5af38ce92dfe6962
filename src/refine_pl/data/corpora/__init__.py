"""Sources of documents, one per file. Heavy libraries load only when documents are read."""

from refine_pl.data.corpora.base import Corpus
from refine_pl.data.corpora.files import Files
from refine_pl.data.corpora.hub_dataset import HubDataset
from refine_pl.data.corpora.standard_library import StandardLibrary

__all__ = ["Corpus", "Files", "HubDataset", "StandardLibrary"]
