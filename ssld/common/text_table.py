"""A table of text for terminals and files."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Sequence

CELL = 40
"""Characters of a cell's line."""
ABSENT = "-"
"""In a cell without a value."""


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; those that a terminal has no room for go below, under the first again."""
    width = shutil.get_terminal_size((10**6, 0)).columns  # nothing is folded in a file
    columns = [_column(cells) for cells in zip(head, *rows, strict=True)]
    blocks = [[columns[0]]]
    for column in columns[1:]:
        used = sum(len(cells[0][0]) + 2 for cells in blocks[-1])
        if used + len(column[0][0]) > width and len(blocks[-1]) > 1:
            blocks.append([columns[0]])
        blocks[-1].append(column)
    return "\n\n".join(_block(block) for block in blocks)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown; a bar in a cell is no border."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    cells.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _column(cells: Sequence[str]) -> list[list[str]]:
    """Each cell as lines of one width; numbers to the right, a heading no wider than it must be."""
    body = [textwrap.wrap(cell, CELL) or [""] for cell in cells[1:]]
    words = [line for lines in body for line in lines] + cells[0].split()
    wrapped = [textwrap.wrap(cells[0], min(CELL, max(map(len, words)))), *body]
    width = max(len(line) for lines in wrapped for line in lines)
    numbers = all(cell.strip("*")[:1].isdigit() or cell == ABSENT for cell in cells[1:])
    return [[line.rjust(width) if numbers else line.ljust(width) for line in x] for x in wrapped]


def _block(columns: Sequence[list[list[str]]]) -> str:
    widths, lines = [len(cells[0][0]) for cells in columns], []
    for cells in zip(*columns, strict=True):
        for line in itertools.zip_longest(*cells, fillvalue=""):
            lines.append("  ".join(map(str.ljust, line, widths)).rstrip())
    lines.insert(max(len(cells[0]) for cells in columns), "  ".join("-" * x for x in widths))
    return "\n".join(lines)
