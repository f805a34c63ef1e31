"""The settings of `ssld compare`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssld.common.settings import require


@dataclass(frozen=True)
class CompareConfig:
    """`ssld compare A B ...`: config differences, one table and one overlay of curves.

    The runs may still be going."""

    runs: list[str] = field(default_factory=list)
    """Run folders; the words before the first option are taken for them."""
    out: str = "compare.html"
    """The page that is written."""
    json: str | None = None
    """Also write differences and results to this file."""

    def __post_init__(self) -> None:
        require(
            len(self.runs) > 1,
            f"runs is {self.runs}: give at least two run folders, before any option",
        )
        require(
            self.out.endswith((".html", ".htm")),
            f"out is {self.out}: name the page that is written, {self.out or 'compare'}.html say",
        )
        require(self.out != self.json, f"out and json are both {self.out}: name two files")
