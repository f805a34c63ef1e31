"""methods.md and report.html: scores, differences with intervals, costs, and the scores over the
share of the labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from downstream.ab.statistics import CONFIDENCE, RESAMPLES, Difference
from downstream.methods.analysis import Analysis, Row, verdict
from downstream.methods.config import ORACLE, SUPERVISED
from ssld.ablate.summary import Spread
from ssld.common.text_table import ABSENT, markdown_table
from ssld.report import page, plots

COST_NOTE = (
    "Passes are images that go through the network, of any size, in one run: of the student "
    "forward and backward, the training of its teacher among them; of the teacher forward alone."
)


def head(analysis: Analysis) -> list[str]:
    return ["labels", "method", f"{analysis.label}, % (seeds)", "less supervised, points",
            "less oracle, points", "student passes", "teacher passes"]  # fmt: skip


def rows(analysis: Analysis) -> list[list[str]]:
    """A row of `head` for each method and share."""
    return [
        [
            _share(row),
            row.method,
            f"{_spread(row).percent()} ({len(row.results)})",
            *(_points(row.differences.get(name)) for name in (SUPERVISED, ORACLE)),
            f"{row.cost.student:,}",
            f"{row.cost.teacher:,}" if row.cost.teacher else ABSENT,
        ]
        for row in analysis.rows
    ]


def _share(row: Row) -> str:
    return f"{100 * row.share:g} %"


def _spread(row: Row) -> Spread:
    return Spread(tuple(x.score for x in row.results.values() if math.isfinite(x.score)))


def _points(one: Difference | None) -> str:
    if one is None or one.flaw:
        return ABSENT
    interval = one.deciding
    limits = f" [{100 * interval.low:+.2f} to {100 * interval.high:+.2f}]" if interval else ""
    return f"{100 * one.mean:+.2f}{limits}"


def headline(analysis: Analysis) -> list[str]:
    """A sentence for each method and share."""
    lines = []
    for row in analysis.rows:
        one = row.differences.get(SUPERVISED)
        if one is not None:
            points = "" if one.flaw else f", {_points(one)} points of {analysis.label}"
            said = verdict(row.method, SUPERVISED, one)
            lines.append(f"{_share(row)} of the labels, {row.method}: {said}{points}{one.doubt}.")
    return lines


def note(analysis: Analysis) -> str:
    """How the numbers came about."""
    seeds = max(len(row.results) for row in analysis.rows)
    images = f" and {RESAMPLES} draws of the {analysis.images:,} held-out images" * bool(
        analysis.images
    )
    text = (
        "Scores are means ± standard deviations over seeds. Differences are of runs of one seed, "
        f"which have the same labeled images; {CONFIDENCE:.0%} intervals over seeds (Student's t)"
        f"{images}, added as independent. No correction for the number of comparisons is made. "
    )
    if seeds == 1:
        text += "One seed has no interval: what another one would give is unknown. "
    if any(x.chosen for row in analysis.rows for x in row.results.values()):
        text += "Each run counts at its best evaluation, which these very images chose. "
    return " ".join([text.strip(), *analysis.unequal, COST_NOTE])


def markdown(analysis: Analysis) -> str:
    """methods.md"""
    lines = [f"# {analysis.task}: what unlabeled images bring", "", f"From `{analysis.file}`.", ""]
    lines += [f"- {line}" for line in headline(analysis)]
    lines += ["", markdown_table(head(analysis), rows(analysis)), "", note(analysis)]
    return "\n".join(lines) + "\n"


def write_report(analysis: Analysis, path: Path) -> None:
    """Write report.html."""
    page.write_page(
        path,
        "downstream/methods/report.html",
        title=f"{analysis.task}: what unlabeled images bring",
        file=analysis.file,
        headline=headline(analysis),
        over_share=page.plot(f"{analysis.label} over the share of the labels", figure(analysis)),
        head=head(analysis),
        rows=rows(analysis),
        note=note(analysis),
        links=_links(analysis),
    )


def figure(analysis: Analysis) -> Figure:
    """Mean and standard deviation over seeds."""
    drawn = plots.figure_of(figsize=(6.4, 3.8), layout="constrained")
    plot = plots.axes(drawn, "share of the labels, %")
    plot.set_ylabel(f"{analysis.label} on held-out images, %", fontsize=9)
    names = dict.fromkeys(row.method for row in analysis.rows)
    for name, colour in zip(names, plots.COLOURS, strict=False):
        points = [(100 * row.share, _spread(row)) for row in analysis.rows if row.method == name]
        known = [(x, [100 * y for y in spread.points]) for x, spread in points if spread.points]
        if name == ORACLE and known:
            mean = statistics.fmean(known[0][1])
            plot.axhline(mean, color=plots.GREY, lw=1.2, ls="--", label="oracle, all labels")
            continue
        plot.errorbar(
            [x for x, _ in known],
            [statistics.fmean(scores) for _, scores in known],
            [statistics.stdev(scores) if len(scores) > 1 else 0 for _, scores in known],
            fmt="o-", color=colour, capsize=3, lw=1.5, ms=4, label=name,
        )  # fmt: skip
    shares = sorted({100 * row.share for row in analysis.rows if row.method != ORACLE})
    plot.set_xticks(shares, [f"{share:g}" for share in shares])
    plot.margins(x=0.15)
    plot.legend(frameon=False, fontsize=9, loc="lower right")
    return drawn


def _links(analysis: Analysis) -> Sequence[tuple[str, list[tuple[int, str]]]]:
    """(method and share, [(seed, address)]) of the runs' reports."""
    links = []
    for row in analysis.rows:
        found = [
            (seed, (result.folder / "report.html").relative_to(analysis.out).as_posix())
            for seed, result in sorted(row.results.items())
            if result.folder
        ]
        links.append((f"{row.method}, {_share(row)}", found))
    return links
