"""Real tokenizers of a few hundred tokens, made on the spot."""

from pathlib import Path

from refine_pl.data import HubTokenizer

TEXT = (
    "The hidden number of the river is in the text above. Question: What is the answer to it? "
    "The passages hold the answers, and a question about the words in the text. The cat is on "
    "the roof near the sea. 1234567 7654321 0 1 2 3 4 5 6 7 8 9 a b c d e f calm-river wild-goat "
)


def byte_level(folder: Path, eos: str | None = "</s>") -> HubTokenizer:
    """Pairs of bytes, as GPT-2 has them: a space belongs to the word after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 3, trainer)
    return _saved(bpe, folder, eos)


def sentence_piece(folder: Path) -> HubTokenizer:
    """As Llama's: spaces become a sign of their own, one is put in front, bytes are the rest.

    Pairs merge over the borders of words, so the end of a prompt may join with an answer.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, max_token_length=8, special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator([TEXT] * 3, trainer)
    return _saved(bpe, folder, "</s>")


def _saved(tokenizer, folder: Path, eos: str | None) -> HubTokenizer:
    from transformers import PreTrainedTokenizerFast

    special = {"eos_token": eos} if eos else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", **special).save_pretrained(
        folder
    )
    return HubTokenizer(str(folder))


# Templates as published ones are: with a beginning of the text, with trimmed messages and answers
# after a space, and with thoughts, which an option leaves out.
TEMPLATES = {
    "turns": (
        "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    ),
    "brackets": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "thoughts": (
        "<|turn|>system\nBe brief.<|end|>\n{% for m in messages %}<|turn|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n<think>\n"
        "{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '\n</think>\n\n' }}{% endif %}"
        "{% endif %}"
    ),
}


def with_template(tokenizer: HubTokenizer, template: str, folder: Path) -> HubTokenizer:
    """The tokenizer with tokens for turns, and a template that uses them."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.name)
    loaded.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    loaded.chat_template = template
    loaded.save_pretrained(folder)
    return HubTokenizer(str(folder))
