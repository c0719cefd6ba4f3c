"""What was measured, as a table to read and as JSON to compare with later."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Series:
    """How long one thing took each time, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.seconds):.2f}-{max(self.seconds):.2f})"


@dataclass(frozen=True)
class Row:
    """One case at one distance: ours, next to the least possible (floor) and mngr's own way (peer).

    ``limit_seconds`` is what it must not exceed. ``notes`` are what was counted.
    """

    case: str
    round_trip_ms: int
    ours: Series
    floor: Series | None = None
    peer: Series | None = None
    limit_seconds: float | None = None
    notes: str = ""

    @property
    def is_met(self) -> bool:
        """Whether it is within its limit, if it has one."""
        return self.limit_seconds is None or self.ours.median <= self.limit_seconds

    def cells(self) -> tuple[str, ...]:
        """What the table shows of it."""
        return (
            self.case,
            str(self.round_trip_ms),
            str(self.ours),
            "" if self.floor is None else str(self.floor),
            "" if self.peer is None else str(self.peer),
            "" if self.floor is None else f"{self.ours.median / self.floor.median:.1f}",
            "" if self.limit_seconds is None else f"{self.limit_seconds:.2f} {'met' if self.is_met else 'MISSED'}",
            self.notes,
        )


_TITLES = ("case", "RTT ms", "ours s (min-max)", "floor", "peer", "ratio", "limit", "counted")


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, which is also readable as it is."""
    cells = [_TITLES, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_TITLES))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" if "-|-" not in line else f"|-{line}-|" for line in lines)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, and what they were measured on."""
    machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def compared_with(path: Path, rows: Iterable[Row]) -> list[str]:
    """How each row's median stands to that of an earlier run, a line each."""
    earlier = {
        (row["case"], row["round_trip_ms"]): statistics.median(row["ours"]["seconds"])
        for row in json.loads(path.read_text())["rows"]
    }
    known = ((row, earlier.get((row.case, row.round_trip_ms))) for row in rows)
    return [
        f"{row.case} at {row.round_trip_ms} ms: {before:.2f} s then, {row.ours.median:.2f} s now"
        f" ({row.ours.median / before - 1:+.0%})"
        for row, before in known
        if before
    ]
