"""Fields that the configuration of any model may carry, whatever its kind.

transformers writes some of them into every ``config.json``, older versions all of them, with their
defaults. None of them is a field of a model here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refine_pl.errors import CheckpointError

# No value of these changes what a language model computes: labels of classifiers, what is
# returned, how text is generated, and bookkeeping.
NO_EFFECT = frozenset(
    [
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "dtype",
        "model_type",
        "torch_dtype",
        "transformers_version",
        "finetuning_task",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "task_specific_params",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "return_dict_in_generate",
        "output_scores",
        "chunk_size_feed_forward",
        "is_decoder",
        "tf_legacy_loss",
        "torchscript",
        "use_bfloat16",
        "decoder_start_token_id",
        "prefix",
        "sep_token_id",
        "tokenizer_class",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "remove_invalid_values",
        "repetition_penalty",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    ]
)

# These would change it, and are off in every language model: nothing is said of them then.
OFF = frozenset(
    [
        "add_cross_attention",
        "cross_attention_hidden_size",
        "is_encoder_decoder",
        "pruned_heads",
        "tie_encoder_decoder",
    ]
)


def is_off(value: object) -> bool:
    """Whether this value turns an option off: None, False, or empty. Zero is a number."""
    return not value and (value is False or type(value) not in (int, float))


def check_language_model(config: Mapping[str, Any], where: object) -> None:
    """Refuse a configuration of a model with other parts than a language model.

    Raises:
        CheckpointError: naming the field, in the file ``where``.
    """
    for name in sorted(OFF & config.keys()):
        if not is_off(config[name]):
            raise CheckpointError(
                f"{name}={config[name]!r:.60} is not supported: it is not of a language model",
                where=str(where),
                allowed="off: false, null or empty",
            )
