"""What the scripts beside this file share: CSVs, Markdown tables, means over seeds, plain axes."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

Rows = list[dict[str, str]]


def read(file: Path) -> Rows:
    """Empty where there is none."""
    if not file.is_file():
        return []
    with file.open(newline="") as source:
        return list(csv.DictReader(source))


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def values(rows: Rows, column: str = "top1", **where: str) -> list[float]:
    """Percent, one for each seed."""
    chosen = [row for row in rows if all(row[key] == x for key, x in where.items())]
    return [100 * float(row[column]) for row in chosen if row[column]]


def places(rows: Rows, axis: str) -> list[str]:
    """The values of an axis, in the order of the file."""
    return list(dict.fromkeys(row[axis] for row in rows))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation of a sample."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def show(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    print(f"| {' | '.join(head)} |\n" + "|---" * len(head) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def plain(axes: Axes, grid: str = "y") -> Axes:
    """Grey lines behind the data, no frame above and to the right."""
    axes.grid(axis=grid, color="#e6e8eb")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
