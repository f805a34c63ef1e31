"""`ssld ablate F.yaml`: a recipe for each cell of a grid.

OUT/ablation.yaml    the file as it was, and what was given besides
OUT/cells/NAME/      of `ssld recipe`; recipe.yaml, cell.log, and done.json when it is done
OUT/results.csv      results.parquet: every cell and stage, rewritten after every cell
OUT/table.md         means and deviations over seeds
OUT/report.html      the same, and a plot per axis; each in OUT/plots, too
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ssld.ablate import grid, pool, results, state, summary
from ssld.ablate.config import AblateConfig
from ssld.ablate.grid import Ablation, Cell
from ssld.common.errors import InputError, Interrupted
from ssld.common.files import locked, write_atomically
from ssld.common.metrics import METRICS, RESULTS
from ssld.common.settings_file import text_of
from ssld.engine.preemption import Preemption

FAILED = 1
REFRESH_SECONDS = 0.5


class Ledger:
    """What is known of the cells, on the disk too."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self.failed: dict[str, str] = {}
        done = {x.name: state.done_rows(ablation.folder(x), x) for x in ablation.cells}
        self.results = {name: rows for name, rows in done.items() if rows is not None}
        self.write()

    @property
    def waiting(self) -> list[Cell]:
        """What is neither done nor failed."""
        over = {*self.results, *self.failed}
        return [cell for cell in self.ablation.cells if cell.name not in over]

    def end(self, cell: Cell, failure: str | None) -> str:
        """Note that a cell has ended; returns that in a sentence."""
        try:
            rows = results.read_cell(self.ablation, cell)
            missing = set(self.ablation.stages) - {row["stage"] for row in rows}
            if not failure and missing:
                failure = f"its recipe ended without {', '.join(sorted(missing))}"
        except InputError as error:
            rows, failure = [], failure or str(error)
        if failure:
            self.failed[cell.name] = failure
            unsure = state.unsure(self.ablation.folder(cell), cell)
            rows = [row for row in rows if row["stage"] not in unsure]
        else:
            state.write_done(self.ablation.folder(cell), cell, rows)
        self.results[cell.name] = rows
        self.write()
        return f"{cell.name}: {f'failed: {failure}' if failure else _said(rows)}"

    def write(self) -> summary.Summary:
        """results.csv, results.parquet and table.md."""
        rows = results.tidy(self.ablation, self.results, self.failed)
        results.write_results(self.ablation, rows)
        found = summary.summarise(self.ablation, rows, self.failed)
        write_atomically(self.ablation.out / "table.md", summary.markdown(found))
        return found


def ablate(config: AblateConfig) -> int:
    """Run the cells that are not done, and write tables and plots.

    Returns:
        0, or 1 if a cell failed.

    Raises:
        InputError: the file or a recipe in it is bad, `out` is foreign or was made with other
            settings: before anything is written. A full disk.
        Interrupted: by a signal; the same command goes on.
    """
    ablation = grid.read(config.file, config.out, config.overrides)
    return run(ablation, config, _noted(config), _finish)


def run(
    ablation: Ablation, config: AblateConfig, note: str, finish: Callable[[Ledger], None]
) -> int:
    """The same for a grid that is read, or made elsewhere.

    Args:
        note: kept in the folder as what the grid came from.
        finish: writes what is made of the results when no cell is left to run.
    """
    state.check_out(ablation.out)
    if not config.overwrite:
        state.check_unchanged(ablation)
    _check_recipes(ablation)
    devices = pool.find_devices(config.devices)
    with Preemption() as preemption, locked(ablation.out):
        write_atomically(ablation.out / state.MARK, note)
        ledger = Ledger(ablation)
        _run(ledger, devices, preemption, config.overwrite)
        if preemption.asked and ledger.waiting:
            raise Interrupted(
                f"{preemption.signal} with {len(ledger.waiting)} of {len(ablation.cells)} cells to "
                "go; the same command goes on"
            )
        finish(ledger)
    if ledger.failed:
        said = f"{len(ledger.failed)} of {len(ablation.cells)} cells failed"
        print(f"error: {said}; mend what is said above, the same command goes on", file=sys.stderr)
        return FAILED
    return 0


def _run(
    ledger: Ledger, devices: Sequence[pool.Device], preemption: Preemption, overwrite: bool
) -> None:
    ablation, waiting = ledger.ablation, ledger.waiting
    kept, total = len(ablation.cells) - len(waiting), len(ablation.cells)
    print(f"{total} cells{f', {kept} of them done before' if kept else ''}", flush=True)
    strays = state.strays(ablation)
    if strays:
        print(
            f"{strays} more in {ablation.out / 'cells'} {'are' if strays > 1 else 'is'} not on the "
            "grid (any more): kept there, left out of the tables",
            flush=True,
        )

    def command(cell: Cell) -> tuple[Path, list[str]]:
        folder = ablation.folder(cell)
        state.prepare(folder, cell)
        words = [str(folder / state.RECIPE), "--out", str(folder)]
        return folder / "cell.log", [*words, *(["--overwrite"] if overwrite else [])]

    tqdm.monitor_interval = 0  # its thread is not needed
    with tqdm(total=total, initial=kept, unit="cell", disable=None, leave=False) as bar:
        shown = 0.0

        def watch(names: list[str]) -> None:
            nonlocal shown
            if time.monotonic() - shown > REFRESH_SECONDS:
                shown = time.monotonic()
                bar.set_postfix_str("; ".join(names))

        ended = pool.run_cells(waiting, command, devices, preemption, watch)
        with contextlib.closing(ended):  # no cell outlives an error here
            for cell, failure in ended:
                said = ledger.end(cell, failure)
                bar.update()
                bar.write(said)
                sys.stdout.flush()


def _said(rows: Sequence[state.Row]) -> str:
    said = []
    for row in rows:
        known = [(METRICS[x], row[x]) for x in RESULTS if row.get(x) is not None]
        words = [f"{metric.label} {metric.show(value)}" for metric, value in known]
        said.append(f"{row['stage']} {', '.join(words) or 'done'}")
    return "; ".join(said)


def _finish(ledger: Ledger) -> None:
    from ssld.ablate.report import write_report
    from ssld.common.attempt import attempt

    found, out = ledger.write(), ledger.ablation.out
    attempt("report.html", lambda: write_report(found))
    print(f"\n{(out / 'table.md').read_text(encoding='utf-8')}")
    print(f"table:  {out / 'results.csv'}\nreport: {out / 'report.html'}")


def _check_recipes(ablation: Ablation) -> None:
    """The recipe of each cell that is not done, one of those that differ in the seed only.

    Raises:
        InputError: a setting that is unknown or not allowed.
    """
    folders = {cell.name: ablation.folder(cell) for cell in ablation.cells}
    waiting = [x for x in ablation.cells if state.done_rows(folders[x.name], x) is None]
    if not waiting:
        return
    from ssld.recipe.recipe import open_recipe

    firsts: dict[tuple[str, ...], Cell] = {}
    for cell in waiting:
        firsts.setdefault(cell.others(grid.SEED), cell)
    for cell in firsts.values():
        open_recipe(f"{ablation.file}, {cell.name}", cell.recipe, str(folders[cell.name]), [])


def _noted(config: AblateConfig) -> str:
    """The file and the overrides, for whoever finds the folder."""
    given = "".join(f"#   --{word}\n" for word in config.overrides)
    return f"# ssld ablate {config.file}\n{given}\n{text_of(Path(config.file))}"
