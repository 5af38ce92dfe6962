"""One row of a task as token ids."""

from refine_pl.data.tasks.encoding import Encoding, TaskTokens, encode_rows
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Tokenizer


def encode_row(
    tokenizer: Tokenizer, row: TaskRow, encoding: Encoding, *, with_answer: bool = True
) -> TaskTokens:
    (encoded,) = encode_rows(tokenizer, [row], encoding, with_answers=with_answer)
    return encoded
