"""report.html of an ablation, and a picture per axis to show in a talk."""

from __future__ import annotations

from ssld.ablate.grid import SEED, Ablation, Trial, file_name
from ssld.ablate.plot import draw
from ssld.ablate.summary import Summary, explained, table
from ssld.common.files import write_atomically
from ssld.report import page, plots


def write_report(summary: Summary) -> None:
    """Write report.html and plots/*.png."""
    ablation, pictures = summary.ablation, []
    for axis in ablation.compared:
        if len(axis.values) > 1 and summary.measured():
            content = plots.png(draw(summary, axis), dpi=200)
            path = ablation.out / "plots" / f"{file_name(axis.name)}.png"
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)
            pictures.append((axis.name, page.data_uri(content)))
    head, rows = table(summary)
    links = [[_link(ablation, trial) for trial in trials] for trials in summary.places.values()]
    page.write_page(
        ablation.out / "report.html",
        "ssld/ablate/report.html",
        title=f"Ablation: {ablation.title}",
        file=ablation.file,
        explained=explained(summary),
        head=head,
        texts=len(ablation.compared) or 1,
        rows=list(zip(rows, links, strict=True)),
        failed=list(summary.failed.items()),
        plots=pictures,
    )


def _link(ablation: Ablation, trial: Trial) -> tuple[str, str]:
    """Address and text."""
    folder = ablation.folder(trial)
    own = [folder / "report.html", folder / ablation.stages[0] / "report.html"]
    target = next((x for x in own if x.is_file()), folder / "cell.log")
    text = trial.values[SEED].text if SEED in trial.values else "report"
    return f"cells/{trial.name}/{target.relative_to(folder).as_posix()}", text
