"""Text to token ids and back."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refine_pl.errors import DataError, deepest_reason, download_command, refuse_missing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Names of files that hold a vocabulary, of one kind of tokenizer or another.
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "*.model", "*.tiktoken", "tekken*")

TokenIds = npt.NDArray[np.integer]
Message = dict[str, str]  # role and content


class Tokenizer(ABC):
    """Turns text into token ids and back. It adds nothing: no BOS, no end of text, no padding."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Ids are below this number, special ones included."""

    @property
    @abstractmethod
    def eos_token_id(self) -> int | None:
        """The id that ends a text, or ``None`` if there is none."""

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Ids with a meaning, by the names that ``config.json`` has for them; those it knows."""
        return {} if self.eos_token_id is None else {"eos_token_id": self.eos_token_id}

    @property
    def marks(self) -> frozenset[int]:
        """Ids that stand for no text: ends and beginnings of texts and of turns."""
        return frozenset(self.special_token_ids.values())

    @property
    def chat_template(self) -> str | None:
        """The template (Jinja) that conversations are written in; None if there is none."""
        return None

    def render_chat(
        self, messages: Sequence[Message], answer: bool, options: Mapping[str, Any]
    ) -> str:
        """The text of a conversation by the template.

        Args:
            messages: of the user and the assistant in turn.
            answer: end where the assistant's next message begins.
            options: further variables of the template.
        """
        raise DataError(f"{self.label} has no chat template")

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever :meth:`encode` would give other ids: token caches are named by it."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids are shown, not dropped."""

    @property
    def label(self) -> str:
        """What people read in messages."""
        return type(self).__name__

    def spec(self) -> dict[str, Any] | None:
        """What names the tokenizer in a configuration, for checkpoints; None if nothing does.

        A mapping of ``class_path`` and ``init_args``, plain values.
        """
        return None

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of several texts, one array each; override where a batch is faster."""
        return [np.asarray(self.encode(text), dtype=np.int64) for text in texts]


class Bytes(Tokenizer):
    """The bytes of UTF-8 are the ids 0 to 255; 256 ends a text. Needs no files."""

    vocab_size = 257
    eos_token_id = 256
    fingerprint = "bytes-1"  # a constant: there is nothing that could differ

    def spec(self) -> dict[str, Any]:
        """The class."""
        return {"class_path": "refine_pl.data.Bytes", "init_args": {}}

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The bytes of the texts, one uint8 array each."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD, 256 becomes ``<eos>``."""
        parts: list[str] = []
        for are_bytes, run in groupby(ids, lambda token: 0 <= token < 256):
            if are_bytes:
                parts.append(bytes(run).decode(errors="replace"))
            else:
                parts += ("<eos>" if token == self.eos_token_id else f"<{token}>" for token in run)
        return "".join(parts)


class HubTokenizer(Tokenizer):
    """A tokenizer of the Hugging Face hub, or of a local folder. It is loaded when first used.

    Args:
        name: name on the hub, or a local folder.
        revision: branch, tag or commit on the hub.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name = str(Path(name).expanduser()) if name.startswith("~") else name
        self.revision = revision

    @property
    def label(self) -> str:
        """The class and the name."""
        return f"HubTokenizer {self.name}"

    def spec(self) -> dict[str, Any]:
        """The class, the name and the revision; a folder is named in full."""
        folder = Path(self.name)
        name = str(folder.resolve()) if folder.is_dir() else self.name
        arguments = {"name": name, "revision": self.revision}
        return {"class_path": "refine_pl.data.HubTokenizer", "init_args": arguments}

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included: ids may have gaps."""
        return self._highest_id + 1

    @cached_property
    def _highest_id(self) -> int:
        return max(self._loaded.get_vocab().values(), default=-1)

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, or ``None`` if the tokenizer names none."""
        token: int | None = self._loaded.eos_token_id
        return token

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Those of the beginning and the end of a text and of padding, where it names them."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        found = {name: getattr(self._loaded, name, None) for name in names}
        return {name: token for name, token in found.items() if token is not None}

    @cached_property
    def marks(self) -> frozenset[int]:
        """All special tokens, those of turns among them."""
        added = self._loaded.added_tokens_decoder.items()
        special = {token for token, about in added if about.special}
        return frozenset(special.union(self._loaded.all_special_ids))

    @cached_property
    def chat_template(self) -> str | None:
        """That of ``chat_template.jinja`` or ``tokenizer_config.json``; the default of several."""
        return self._loaded.get_chat_template() if self._loaded.chat_template else None

    def render_chat(
        self, messages: Sequence[Message], answer: bool, options: Mapping[str, Any]
    ) -> str:
        """As ``transformers`` writes it, which has its own checks of what a template may do."""
        return str(
            self._loaded.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer, **options
            )
        )

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the tokenizer's whole definition, not of its name."""
        loaded = self._loaded
        backend = getattr(loaded, "backend_tokenizer", None)
        definition = (
            backend.to_str()
            if backend is not None
            else (
                type(loaded).__name__,
                sorted(loaded.get_vocab().items()),
                sorted(loaded.special_tokens_map.items()),
            )
        )
        return hashlib.blake2b(repr(definition).encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens around it."""
        ids: list[int] = self._loaded.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of several texts; a Rust tokenizer works on them in parallel."""
        encoded = self._loaded(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]

    def save(self, folder: str) -> list[str]:
        """Write the tokenizer's files; their names."""
        return [Path(file).name for file in self._loaded.save_pretrained(folder)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        text = self._loaded.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    @cached_property
    def _loaded(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        refuse_missing_folder(self.name, "the tokenizer")
        _refuse_folder_without(self.name)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it knows no model of this kind, and need not
        try:
            return AutoTokenizer.from_pretrained(
                self.name, revision=self.revision or "main", trust_remote_code=False
            )
        except Exception as error:  # a damaged tokenizer.json raises a bare Exception from Rust
            reason = deepest_reason(error)
            folder = Path(self.name).is_dir()
            raise DataError(
                f"the tokenizer {self.name!r} cannot be loaded: {reason}",
                where="a local folder" if folder else "the hub and its local cache",
                allowed="a folder with tokenizer.json, or the name of a model on the hub",
                way_out="give a complete folder, for example one of save_pretrained"
                if folder
                else f"check the name; {download_command(self.name)}; or give a local folder",
            ) from error
        finally:
            logging.set_verbosity(verbosity)


def _refuse_folder_without(name: str) -> None:
    """Refuse a folder with no file of a tokenizer: the library would speak of its packages."""
    folder = Path(name)
    if not folder.is_dir():
        return
    if not any(fnmatch(file.name, kind) for file in folder.iterdir() for kind in _TOKENIZER_FILES):
        raise DataError(
            f"there is no tokenizer in the folder {name!r}",
            allowed="a folder with tokenizer.json or another tokenizer file of transformers",
            way_out="copy the tokenizer's files there, or name the model that they belong to; "
            "models of bytes need none: refine_pl.data.Bytes",
        )
