"""The scalars of TensorBoard's event files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

EVENTS = "events.out.tfevents.*"
_FRAME = 16  # bytes around every record: its length and two checksums


@dataclass(slots=True)
class Scalars:
    """The curves of a run."""

    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Steps (ascending) and values by name."""
    first_time: float | None = None  # seconds since 1970
    last_time: float | None = None
    notes: list[str] = field(default_factory=list)

    def last(self, name: str) -> float | None:
        """The last value of a curve."""
        return self.curves[name][1][-1] if self.curves.get(name, ([], []))[1] else None


def read_scalars(folder: Path) -> Scalars:
    """All scalars of the event files in ``folder``, oldest file first.

    A step that was written twice, as by a run that went on in the same folder, keeps its last
    value. A file that cannot be read to its end gives what stands before the break, and a note.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found = Scalars()
    values: dict[str, dict[int, float]] = {}
    times: list[float] = []
    for file in sorted(folder.glob(EVENTS)):
        size = 0
        for record in RawEventFileLoader(str(file)).Load():
            size += len(record) + _FRAME
            event = Event.FromString(record)
            if event.HasField("summary"):
                scalars = [v for v in event.summary.value if v.HasField("simple_value")]
                times += [event.wall_time] if scalars else []
                for value in scalars:
                    values.setdefault(value.tag, {})[event.step] = value.simple_value
        if size < file.stat().st_size:
            found.notes.append(
                f"{file.name} can be read up to byte {size:,} of {file.stat().st_size:,} only: it "
                "is damaged, or its run is still writing."
            )
        elif size == 0:
            found.notes.append(f"{file.name} is empty.")
    for name in sorted(values):
        steps = sorted(values[name])
        found.curves[name] = (steps, [values[name][step] for step in steps])
    if times:
        found.first_time, found.last_time = min(times), max(times)
    return found
