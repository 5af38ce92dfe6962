"""The scalars of TensorBoard's event files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from refine_pl.training.run_folder import EVENTS

_FRAME = 16  # bytes around every record: its length and two checksums


@dataclass(slots=True)
class Scalars:
    """The curves of a run."""

    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Steps (ascending) and values by name; none is empty."""
    times: tuple[float, float] | None = None  # of the first and last value, seconds since 1970
    notes: list[str] = field(default_factory=list)

    def last(self, name: str) -> float | None:
        """The last value of a curve."""
        return self.curves[name][1][-1] if name in self.curves else None


def read_scalars(folder: Path) -> Scalars:
    """All scalars of the event files in ``folder``, oldest file first.

    A step that was written twice, as by a run that went on in the same folder, keeps its last
    value. A file that cannot be read to its end gives what stands before the break, and a note.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    found = Scalars()
    values: dict[str, dict[int, float]] = {}
    times: list[float] = []
    for file in sorted(folder.glob(EVENTS)):
        # 0: all of them, where it would keep a random part of a long run.
        events = EventAccumulator(str(file), {SCALARS: 0}, purge_orphaned_data=False).Reload()
        for name in events.Tags()[SCALARS]:
            for event in events.Scalars(name):
                values.setdefault(name, {})[event.step] = event.value
                times.append(event.wall_time)
        size = file.stat().st_size
        read = sum(len(record) + _FRAME for record in RawEventFileLoader(str(file)).Load())
        if read < size:
            found.notes.append(
                f"{file.name} can be read up to byte {read:,} of {size:,} only: it is damaged, or "
                "its run is still writing."
            )
        elif size == 0:
            found.notes.append(f"{file.name} is empty.")
    for name, by_step in sorted(values.items()):
        steps = sorted(by_step)
        found.curves[name] = (steps, [by_step[step] for step in steps])
    if times:
        found.times = min(times), max(times)
    return found
