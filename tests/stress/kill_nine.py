"""Kill a training run with SIGKILL at random moments, resume it each time, compare the end.

    python tests/stress/kill_nine.py --kills 100 --folder DISK --tmp /dev/shm

A small run saves `last.ckpt`, its only checkpoint, after every update. Each time it is killed,
every checkpoint must be whole, and the run goes on in the same folder from the newest one, as a
sweep does. Runs that come to their end must have the weights and moments of a run that nobody
disturbed, bit by bit; then another one begins. ``--tmp`` is the temporary folder, of another file
system than ``--folder`` if that is to be tested.

Every second kill comes within 10 ms after a checkpoint has begun to be written, the others at any
moment. Processes are forked from one that has imported everything, so that a start takes a second.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from runs import RowsData, backbone, module, trainer

from refine_pl.callbacks import RandomState
from refine_pl.sweep.process import newest_checkpoint, prepare
from refine_pl.training.checkpoint_files import save_whole


def start(run, checkpoint, updates, width):
    """A training run in a forked process; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        train(run, checkpoint, updates, width)
        code = 0
    finally:
        os._exit(code)


def train(run, checkpoint, updates, width):
    """From the beginning or a checkpoint to the end."""
    seed_everything(0, verbose=False)
    policy = backbone(hidden_size=width, intermediate_size=2 * width)
    made = trainer(
        RandomState(),
        ModelCheckpoint(run / "checkpoints", every_n_train_steps=1, save_top_k=0, save_last=True),
        enable_checkpointing=True,
        max_steps=updates,
    )
    save_whole(made)
    data = RowsData(batch_size=2, num_rows=10)
    made.fit(module(policy, minibatch_size=2), datamodule=data, ckpt_path=checkpoint)


def wait(child, seconds, saves=None, folder=None):
    """Kill a process after some seconds; its exit code, -9 if it was killed.

    Args:
        child: its number.
        seconds: until it is killed; after the moment that is waited for, if there is one.
        saves: wait until it has begun to save so many times.
        folder: of its checkpoints.
    """
    seen, limit = set(), None if saves else time.monotonic() + seconds
    while limit is None or time.monotonic() < limit:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if limit is None:
            seen.update(path.name for path in folder.glob(".*.scratch"))
            if len(seen) >= saves:
                limit = time.monotonic() + seconds
        else:
            time.sleep(min(0.002, seconds / 10))
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def learned(run):
    """The weights and the optimizer's state at the end of a run."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: state[key] for key in ("state_dict", "optimizer_states", "global_step")}


def same(one, other):
    """Whether two nested values are equal, bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def damaged(run):
    """Checkpoints of a run that cannot be read to their end."""
    found = []
    for path in (run / "checkpoints").glob("*.ckpt"):
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            found.append(f"{path}: {error}")
    return found


def torture(kills, updates, width, draw, say):
    """Kill, resume and compare in the working folder; figures, and what went wrong."""
    runs = Path("runs").absolute()
    begun = time.monotonic()
    assert wait(start(runs / "whole", None, updates, width), 600) == 0, Path("log.txt").read_text()
    longest = time.monotonic() - begun
    expected = learned(runs / "whole")
    assert expected["global_step"] == updates
    names = ("kills", "survived", "while saving", "runs", "equal", "scratch files left")
    figures = dict.fromkeys(names, 0)
    problems = []
    while figures["kills"] < kills or figures["runs"] == 0:
        run = runs / f"killed_{figures['runs']}"
        code = None
        while code != 0:
            checkpoint = prepare(run)
            if figures["kills"] >= kills:
                moment = (600,)
            elif figures["kills"] % 2:  # every second kill looks for a checkpoint being written
                moment = (draw.uniform(0, 0.01), draw.randint(1, 4), run / "checkpoints")
            else:
                moment = (draw.uniform(0, longest),)
            code = wait(start(run, checkpoint, updates, width), *moment)
            if code == -signal.SIGKILL:
                had, torn = checkpoint is not None, damaged(run)
                if had and newest_checkpoint(run) is None:
                    torn.append(f"{run} has lost its checkpoint")
                problems += torn
                figures["kills"] += 1
                figures["survived"] += not torn
                figures["while saving"] += any(run.glob("checkpoints/.*.scratch"))
                say(f"{figures}")
            elif code != 0:
                return figures, [*problems, Path("log.txt").read_text()[-2000:]]
        figures["runs"] += 1
        figures["scratch files left"] += len(list(run.glob("checkpoints/.*")))
        if same(learned(run), expected):
            figures["equal"] += 1
        else:
            problems.append(f"{run} did not end as the run that nobody disturbed")
        shutil.rmtree(run)
    return figures, problems


def main():
    """Parse, run, and say how many kills were survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--updates", type=int, default=24, help="of a run")
    parser.add_argument("--width", type=int, default=64, help="of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where runs are written")
    parser.add_argument("--tmp", help="temporary folder; that of the system if left out")
    args = parser.parse_args()

    def say(text):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.tmp:
            os.environ["TMPDIR"] = tempfile.tempdir = args.tmp
        other = os.stat(tempfile.gettempdir()).st_dev != os.stat(folder).st_dev
        os.chdir(folder)
        torch.set_num_threads(1)
        draw = random.Random(args.seed)
        figures, problems = torture(args.kills, args.updates, args.width, draw, say)
        os.chdir("/")
    for problem in problems:
        say(problem)
    say(
        f"{figures['survived']} of {figures['kills']} kills survived ({figures['while saving']} "
        f"while a checkpoint was written); {figures['equal']} of {figures['runs']} runs equal to "
        f"the undisturbed one, bit by bit; {figures['scratch files left']} scratch files left; "
        f"temporary folder on {'another' if other else 'the same'} file system"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
