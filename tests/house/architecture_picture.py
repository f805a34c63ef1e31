"""docs/architecture.svg, drawn from the floors of docs/architecture.md:

PYTHONPATH=tests/house python tests/house/architecture_picture.py
"""

from __future__ import annotations

from collections.abc import Sequence

from test_architecture import PACKAGES, ROOT, floors

PICTURE = ROOT / "docs/architecture.svg"
COLOURS = dict(zip(PACKAGES, ("#d7e8f7", "#e3f1dc", "#f8e7cf"), strict=True))
WIDTH, LEFT, RIGHT, ROW, BOX, EDGE = 900, 140, 870, 30, 24, 14
"""px: of the picture, where rooms begin and end, of a floor, of a room, around the rooms."""


def picture(floors: Sequence[Sequence[str]]) -> str:
    """An SVG: a block for each package, a row for each floor, arrows to what is imported."""
    parts, top = [], 20
    for package, colour in COLOURS.items():
        own = [[x.partition(".")[2] for x in row if x.startswith(package)] for row in floors]
        rows = [row for row in own if row]
        if parts:
            parts.append(
                f'<path d="M 450 {top - 20} v 14 m -5 -6 l 5 6 l 5 -6" stroke="#444" '
                'stroke-width="2" fill="none"/>'
            )
        height = len(rows) * ROW + 2 * EDGE - (ROW - BOX)
        parts += [
            f'<rect x="10" y="{top}" width="880" height="{height}" rx="6" fill="{colour}"/>',
            f'<text x="24" y="{top + height // 2 + 5}" font-weight="bold" font-size="16">'
            f"{package}</text>",
        ]
        for i, row in enumerate(rows):
            parts += _row(row, top + EDGE + i * ROW)
        top += height + 22
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" '
        f'height="{top}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>', *parts]) + (
        "\n</svg>\n"
    )


def _row(names: Sequence[str], top: int) -> list[str]:
    width = (RIGHT - LEFT - 10 * (len(names) - 1)) // len(names)
    parts = []
    for i, name in enumerate(names):
        x = LEFT + i * (width + 10)
        parts += [
            f'<rect x="{x}" y="{top}" width="{width}" height="{BOX}" rx="3" fill="#fff" '
            'stroke="#777"/>',
            f'<text x="{x + width // 2}" y="{top + 16}" text-anchor="middle">{name}</text>',
        ]
    return parts


if __name__ == "__main__":
    PICTURE.write_text(picture(floors()), encoding="utf-8")
