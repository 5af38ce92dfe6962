"""``refine-pl prepare``: rows of tasks from files that others publish."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from refine_pl.commands.arguments import Arguments
from refine_pl.data.tasks.published_questions import HOTPOTQA, SQUAD, Published, held_apart
from refine_pl.data.tasks.question_answering import MultiDocumentQA
from refine_pl.errors import ConfigError, DataError
from refine_pl.task_records import TaskRow
from refine_pl.tokenizers import Bytes, HubTokenizer, Tokenizer
from refine_pl.whole_files import whole_file

_HELP = f"""Makes rows of RULER's questions about many documents, as the recipes of post-training
and eval/ruler_qa read them, from files of SQuAD and HotpotQA. The same files, tokenizer, length
and seed give the same rows. Nothing is downloaded: the files are at
{SQUAD.sources} and
{HOTPOTQA.sources}."""

_SETS = {"squad": SQUAD, "hotpotqa": HOTPOTQA}


def main(argv: Sequence[str]) -> int:
    """Read, make, write.

    Raises:
        UserError: a file cannot be used, or rows lie where these would be written.
    """
    args = _parser().parse_args(argv)
    _check(args)
    words = "bytes", "Bytes", "refine_pl.data.Bytes"
    tokenizer: Tokenizer = Bytes() if args.tokenizer in words else HubTokenizer(args.tokenizer)
    given = [(each, getattr(args, name)) for name, each in _SETS.items() if getattr(args, name)]
    targets = [folder / f"{each.task}.parquet" for folder, _ in _sides(args) for each, _ in given]
    _refuse_replacing(targets, args.overwrite)
    made: list[
        tuple[Path, list[TaskRow], list[str]]
    ] = []  # all of it before the first file is written
    for number, (published, path) in enumerate(given):
        share = [_share(total, number, len(given)) for _, total in _sides(args)]
        made += _made(published, Path(path), tokenizer, args, share)
    for target, rows, lines in made:
        write_rows(target, rows)
        sys.stdout.write("\n  ".join(lines) + "\n")
    return 0


def _parser() -> Arguments:
    parser = Arguments(prog="refine-pl prepare", description=_HELP)
    add = parser.add_argument
    add("what", choices=["ruler_qa"], help="ruler_qa: questions about many documents")
    add("--squad", help="train-v2.0.json, or another file of SQuAD")
    add("--hotpotqa", help="hotpot_train_v1.1.json, or another file of HotpotQA with paragraphs")
    add("--tokenizer", required=True, help="a folder, a name on the hub, or bytes: counts lengths")
    add("--length", type=int, default=8192, help="tokens of prompt and answer (8192)")
    add("--rows", type=int, default=1600, help="in all, the same of each data set (1600)")
    add("--out", required=True, help="folder to write, for example data/ruler_train")
    add("--validation_rows", type=int, default=64, help="of questions that are held out (64)")
    add("--validation_out", help="folder for them, for example data/ruler_validation; else none")
    add("--max_gen_tokens", type=int, default=32, help="tokens left free for an answer (32)")
    add("--seed", type=int, default=0, help="of questions, documents and their order (0)")
    add("--overwrite", action="store_true", help="replace rows that are there")
    return parser


def _check(args: Namespace) -> None:
    if not (args.squad or args.hotpotqa):
        raise ConfigError(
            "no file is given",
            where="command line",
            allowed="--squad FILE, --hotpotqa FILE, or both",
            way_out=f"the files are at {SQUAD.sources} and {HOTPOTQA.sources}",
        )
    least = bool(args.squad) + bool(args.hotpotqa)
    for name, value in (("rows", args.rows), ("validation_rows", args.validation_rows)):
        if value < least:
            raise ConfigError(
                f"--{name} is {value}", where="command line", allowed=f"{least} or more"
            )
    for name in ("length", "max_gen_tokens"):
        if getattr(args, name) < 1:
            raise ConfigError(
                f"--{name} is {getattr(args, name)}", where="command line", allowed="1 or more"
            )
    if args.validation_out and Path(args.validation_out).resolve() == Path(args.out).resolve():
        raise ConfigError(
            "--validation_out is --out",
            where="command line",
            allowed="two folders: a run reads all files of one",
        )


def _sides(args: Namespace) -> list[tuple[Path, int]]:
    """Folders, and how many rows they get."""
    sides = [(Path(args.out), args.rows)]
    if args.validation_out:
        sides.append((Path(args.validation_out), args.validation_rows))
    return sides


def _share(total: int, number: int, parts: int) -> int:
    """What part ``number`` gets of ``total``."""
    return total // parts + (number < total % parts)


def _refuse_replacing(targets: Sequence[Path], overwrite: bool) -> None:
    there = [path for path in targets if path.exists()]
    if there and not overwrite:
        raise ConfigError(
            f"{there[0]} is there already",
            where="--out, --validation_out",
            way_out="another folder, or --overwrite",
        )


def _made(
    published: Published, path: Path, tokenizer: Tokenizer, args: Namespace, share: Sequence[int]
) -> Iterator[tuple[Path, list[TaskRow], list[str]]]:
    """For each file of one data set: where it is written, its rows, and what to say of them."""
    questions = published.questions(path)
    rest, apart = held_apart(questions, args.seed)
    if not args.validation_out:
        rest, apart = rest + apart, []
    elif not rest:
        raise DataError(
            "all questions are about one paragraph, so none can be held out",
            where=str(path),
            way_out="leave --validation_out out, or use a file with more questions",
        )
    for (folder, _), wanted, chosen, others in zip(
        _sides(args), share, (rest, apart), ((), rest), strict=False
    ):
        maker = MultiDocumentQA(
            [str(path)],
            [args.length],
            task=published.task,
            num_rows=wanted,
            max_gen_tokens=args.max_gen_tokens,
            seed=args.seed,
        )
        rows, notes = maker.of_questions(tokenizer, chosen, others)
        target = folder / f"{published.task}.parquet"
        title = (
            f"{target}: {len(rows):,} rows of {args.length:,} tokens, from {len(chosen):,} "
            f"questions of {path}"
        )
        yield target, rows, [title, *notes]


def write_rows(path: Path, rows: Sequence[TaskRow]) -> None:
    """Write rows under the columns that recipes read.

    Args:
        path: a ``.parquet`` file.
        rows: in their order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": [row.id for row in rows],
        "prompt": [row.prompt for row in rows],
        "answer": [list(row.answers) for row in rows],
        "task": [row.task for row in rows],
        "max_gen_tokens": [row.max_gen_tokens for row in rows],
        "max_seq_length": [row.length for row in rows],
    }
    with whole_file(path) as building:
        pq.write_table(pa.table(columns), building)
