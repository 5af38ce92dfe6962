"""Chat templates: what is written around prompts and answers, and what is refused."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
from encoded_rows import encode_row
from small_tokenizers import TEMPLATES, byte_level, sentence_piece, with_template
from task_sources import Own
from transformers import AutoTokenizer

from refine_pl.chat import Chat
from refine_pl.data import Bytes, TaskData
from refine_pl.data.tasks.encoding import Encoding
from refine_pl.errors import ConfigError, DataError
from refine_pl.task_records import TaskRow

PROMPTS = ("What is it?", "  the cat is on\nthe roof ", "héllo 123", "a")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Every template with a tokenizer of bytes and one of Llama's kind."""
    found = {}
    for kind in (byte_level, sentence_piece):
        plain = kind(tmp_path_factory.mktemp("plain"))
        for name, template in TEMPLATES.items():
            folder = tmp_path_factory.mktemp(name)
            found[kind.__name__, name] = with_template(plain, template, folder)
    return found


CASES = [(kind, name) for kind in ("byte_level", "sentence_piece") for name in TEMPLATES]


def row(prompt, *answers):
    return TaskRow("r", "qasper", prompt, answers, 8)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_prompts_and_answers_are_those_of_transformers(tokenizers, case):
    """The ids of a prompt, and of a conversation up to the end of the answer; one BOS at most."""
    tokenizer = tokenizers[case]
    theirs = AutoTokenizer.from_pretrained(tokenizer.name)
    chat = Chat.of(tokenizer)
    for prompt in PROMPTS:
        asked = [{"role": "user", "content": prompt}]
        encoded = encode_row(tokenizer, row(prompt, "the sea"), Encoding(chat=chat))
        expected = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert encoded.prompt.tolist() == expected
        assert encoded.prompt.tolist().count(theirs.bos_token_id) == ("thoughts" not in case)
        answered = [*asked, {"role": "assistant", "content": "the sea"}]
        whole = theirs.apply_chat_template(answered, return_dict=False)
        stop = len(encoded.answered)
        assert encoded.answered.tolist() == whole[:stop]
        assert tokenizer.decode(whole[stop:]).strip() == ""
        assert encoded.answered[-1] == encoded.turn_end == chat.end
        trained = tokenizer.decode(encoded.answered[encoded.answer_start :].tolist())
        assert trained.removeprefix("\n</think>\n\n").strip().startswith("the sea<")


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_middle_of_the_prompt_is_cut_and_never_the_template(tokenizers, case):
    tokenizer = tokenizers[case]
    chat = Chat.of(tokenizer)
    rng = random.Random("-".join(case))
    least = sum(chat.borders(encode_row(tokenizer, row("a"), Encoding(chat=chat)).prompt))
    for _ in range(12):
        prompt = " ".join(rng.choices(["the", "river", "1234567", "cat", "é"], k=40))
        whole = encode_row(tokenizer, row(prompt), Encoding(chat=chat)).prompt
        limit = rng.randrange(least + 1, len(whole))
        encoding = Encoding(limit, chat=chat)
        found = encode_row(tokenizer, row(prompt), encoding)
        assert len(found.prompt) == limit
        assert found.cut_tokens == len(whole) - limit
        text = tokenizer.decode(found.prompt.tolist()).replace(" ", "")
        assert text.startswith(chat.head.replace(" ", ""))
        assert text.endswith(chat.tail.replace(" ", ""))
        first, last = chat.borders(whole)
        room = limit - first - last
        front, back = first + room - room // 2, last + room // 2
        kept = [*whole[:front], *whole[len(whole) - back :]]
        assert found.prompt.tolist() == kept
        trained = encode_row(tokenizer, row(prompt, "the sea"), encoding)
        assert trained.answered[: trained.answer_start].tolist() == kept[: trained.answer_start]
        assert limit - trained.answer_start <= 1  # the last id may join with the answer
    with pytest.raises(ConfigError, match="the chat template alone has"):
        encode_row(tokenizer, row("the river " * 9), Encoding(4, chat=chat))


def test_without_a_template_the_middle_is_cut_as_before():
    for limit in (3, 4, 9):
        found = encode_row(Bytes(), row("0123456789"), Encoding(limit)).prompt
        rear = limit // 2
        ids = np.frombuffer(b"0123456789", np.uint8)
        assert found.tolist() == [*ids[: limit - rear], *ids[len(ids) - rear :]]


def test_options(tokenizers):
    tokenizer = tokenizers["byte_level", "thoughts"]
    off = Chat.of(tokenizer, "auto", {"enable_thinking": False})
    on = Chat.of(tokenizer)
    assert off.tail.endswith("<think>\n\n</think>\n\n")
    assert on.tail.endswith("<think>\n")
    assert off.wrap("Who?").endswith(f"Who?{off.tail}")
    assert (off.separator, on.separator) == ("", "\n</think>\n\n")
    assert off.fingerprint != on.fingerprint
    assert "enable_thinking=False" in off.describe()
    assert Chat.of(tokenizer, "none") is None
    assert Chat.of(Bytes()) is None


@pytest.mark.parametrize(
    ("template", "setting", "options", "said"),
    [
        (None, "auto", {"enable_thinking": False}, "has none"),
        ("turns", "none", {"enable_thinking": False}, "that is not used"),
        ("thoughts", "auto", {"enable_thinkin": False}, "does not read 'enable_thinkin'"),
        ("{{ raise_exception('no users') }}", "auto", {}, "no users"),
        ("{{ messages[0].content[ }}", "auto", {}, "cannot be used"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "auto", {}, "cannot be used"),
        ("hello", "auto", {}, "the user's message once"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "auto", {}, "message once"),
        ("{{ messages[0].content }}", "auto", {}, "the assistant's message"),
    ],
)
def test_what_is_refused(tokenizers, tmp_path, template, setting, options, said):
    tokenizer = Bytes()
    if template is not None:
        plain = tokenizers["byte_level", "turns"]
        tokenizer = with_template(plain, TEMPLATES.get(template, template), tmp_path)
    with pytest.raises(ConfigError, match=said) as refused:
        Chat.of(tokenizer, setting, options)
    assert refused.value.where.startswith("data.chat_template")


def test_a_tokenizer_without_a_template_says_so():
    with pytest.raises(DataError, match="Bytes has no chat template"):
        Bytes().render_chat([], True, {})


def test_data_say_what_they_use_and_never_mix(tokenizers, tmp_path):
    make = partial(
        TaskData, test={"t": Own(3, "t")}, batch_size=2, cache_dir=str(tmp_path), num_workers=0
    )
    tokenizer = tokenizers["byte_level", "thoughts"]
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    found = {}
    for name, settings in {"auto": {}, "none": {"chat_template": "none"}, "off": off}.items():
        data = make(tokenizer, **settings)
        data.setup("test")
        found[name] = data.describe()["chat_template"], data.data_hash
        (batch, *_) = data.test_dataloader()
        assert batch.turn_ends == ((None,) * 2 if name == "none" else (data._chat.end,) * 2)
        assert batch.narrow(0, 1).turn_ends == batch.turn_ends[:1]
    assert found["none"][0] == "none"
    assert "enable_thinking=False" in found["off"][0]
    assert len({hash for _, hash in found.values()}) == 3
    data = make(Bytes())
    data.setup("test")
    assert "chat_template" not in data.describe()
