"""`ssld ablate F.yaml`: a recipe for each trial of a grid.

OUT/ablation.yaml    the file as it was, and what was given besides
OUT/cells/NAME/      of `ssld recipe`; recipe.yaml, cell.log, and done.json when it is done
OUT/results.csv      results.parquet: every trial and stage, rewritten after every trial
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

from ssld.ablate import grid, pool, results, state
from ssld.ablate.config import AblateConfig
from ssld.ablate.grid import Ablation, Trial
from ssld.ablate.summary import Summary, markdown, summarise
from ssld.common.errors import InputError, Interrupted, attempt
from ssld.common.files import locked, write_atomically
from ssld.common.metrics import METRICS, RESULTS
from ssld.common.settings_file import read_settings, written_out
from ssld.engine.preemption import Preemption
from ssld.recipe.config import blamed
from ssld.recipe.recipe import open_recipe

FAILED = 1
REFRESH_SECONDS = 0.5


class SweepState:
    """What is known of the trials, on the disk too."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self.failed: dict[str, str] = {}
        done = {x.name: state.done_rows(ablation.folder(x), x) for x in ablation.trials}
        self.results = {name: rows for name, rows in done.items() if rows is not None}
        self.write()

    @property
    def waiting(self) -> list[Trial]:
        """What is neither done nor failed."""
        over = {*self.results, *self.failed}
        return [trial for trial in self.ablation.trials if trial.name not in over]

    def end(self, trial: Trial, failure: str | None) -> str:
        """Note that a trial has ended; returns that in a sentence."""
        try:
            rows = results.read_trial(self.ablation, trial)
            missing = set(self.ablation.stages) - {row["stage"] for row in rows}
            if not failure and missing:
                failure = f"its recipe ended without {', '.join(sorted(missing))}"
        except InputError as error:
            rows, failure = [], failure or str(error)
        if failure:
            self.failed[trial.name] = failure
            unsure = state.unsure(self.ablation.folder(trial), trial)
            rows = [row for row in rows if row["stage"] not in unsure]
        else:
            state.write_done(self.ablation.folder(trial), trial, rows)
        self.results[trial.name] = rows
        self.write()
        return f"{trial.name}: {f'failed: {failure}' if failure else _scores(rows)}"

    def write(self) -> Summary:
        """results.csv, results.parquet and table.md."""
        rows = results.tidy(self.ablation, self.results, self.failed)
        results.write_results(self.ablation, rows)
        summary = summarise(self.ablation, rows, self.failed)
        write_atomically(self.ablation.out / "table.md", markdown(summary))
        return summary


def ablate(config: AblateConfig) -> int:
    """Run the trials that are not done, and write tables and plots.

    Returns:
        0, or 1 if a trial failed.

    Raises:
        InputError: the file or a recipe in it is bad, `out` is foreign or was made with other
            settings: before anything is written. A full disk.
        Interrupted: by a signal; the same command goes on.
    """
    tree = read_settings(Path(config.file))

    def read(overrides: list[str]) -> Ablation:
        ablation = grid.build(config.file, tree, config.out, overrides)
        check_recipes(ablation)
        return ablation

    ablation = blamed(config.file, config.overrides, read)
    return run(ablation, config, _noted(config), _finish)


def run(
    ablation: Ablation, config: AblateConfig, note: str, finish: Callable[[SweepState], None]
) -> int:
    """The same for a grid that is read, or made elsewhere.

    Args:
        ablation: for which `check_recipes` holds.
        note: kept in the folder as what the grid came from.
        finish: writes what is made of the results when no trial is left to run.
    """
    state.check_out(ablation.out)
    if not config.overwrite:
        state.check_unchanged(ablation)
    devices = pool.find_devices(config.devices)
    with Preemption() as preemption, locked(ablation.out):
        write_atomically(ablation.out / state.MARK, note)
        sweep = SweepState(ablation)
        _run(sweep, devices, preemption, config.overwrite)
        if preemption.requested and sweep.waiting:
            left = f"{len(sweep.waiting)} of {len(ablation.trials)} trials"
            raise Interrupted(f"{preemption.signal} with {left} to go; the same command goes on")
        finish(sweep)
    if sweep.failed:
        failed = f"{len(sweep.failed)} of {len(ablation.trials)} trials failed"
        print(
            f"error: {failed}; mend what is said above, the same command goes on", file=sys.stderr
        )
        return FAILED
    return 0


def _run(
    sweep: SweepState, devices: Sequence[pool.Device], preemption: Preemption, overwrite: bool
) -> None:
    ablation, waiting = sweep.ablation, sweep.waiting
    kept, total = len(ablation.trials) - len(waiting), len(ablation.trials)
    print(f"{total} trials{f', {kept} of them done before' if kept else ''}", flush=True)
    strays = state.strays(ablation)
    if strays:
        print(
            f"{strays} more in {ablation.out / 'cells'} {'are' if strays > 1 else 'is'} not on the "
            "grid (any more): kept there, left out of the tables",
            flush=True,
        )

    def command(trial: Trial) -> tuple[Path, list[str]]:
        folder = ablation.folder(trial)
        state.prepare(folder, trial)
        words = [str(folder / state.RECIPE), "--out", str(folder)]
        return folder / "cell.log", [*words, *(["--overwrite"] if overwrite else [])]

    tqdm.monitor_interval = 0  # its thread is not needed
    with tqdm(total=total, initial=kept, unit="trial", disable=None, leave=False) as bar:
        shown = 0.0

        def watch(names: list[str]) -> None:
            nonlocal shown
            if time.monotonic() - shown > REFRESH_SECONDS:
                shown = time.monotonic()
                bar.set_postfix_str("; ".join(names))

        ended = pool.run_trials(waiting, command, devices, preemption, watch)
        with contextlib.closing(ended):  # no trial outlives an error here
            for trial, failure in ended:
                bar.update()
                bar.write(sweep.end(trial, failure))
                sys.stdout.flush()


def _scores(rows: Sequence[state.Row]) -> str:
    stages = []
    for row in rows:
        known = [(METRICS[x], row[x]) for x in RESULTS if row.get(x) is not None]
        scores = ", ".join(f"{metric.label} {metric.show(value)}" for metric, value in known)
        stages.append(f"{row['stage']} {scores or 'done'}")
    return "; ".join(stages)


def _finish(sweep: SweepState) -> None:
    from ssld.ablate.report import write_report  # matplotlib takes a second: only at the end

    summary, out = sweep.write(), sweep.ablation.out
    attempt("report.html", lambda: write_report(summary))
    print(f"\n{(out / 'table.md').read_text(encoding='utf-8')}")
    print(f"table:  {out / 'results.csv'}\nreport: {out / 'report.html'}")


def check_recipes(ablation: Ablation) -> None:
    """The recipe of each trial that is not done, one of those that differ in the seed only.

    Raises:
        InputError: a setting that is unknown or not allowed.
    """
    waiting = [x for x in ablation.trials if state.done_rows(ablation.folder(x), x) is None]
    firsts: dict[tuple[str, ...], Trial] = {}
    for trial in waiting:
        firsts.setdefault(trial.others(grid.SEED), trial)
    for trial in firsts.values():
        folder = str(ablation.folder(trial))
        open_recipe(f"{ablation.file}, {trial.name}", trial.recipe, folder, [])


def _noted(config: AblateConfig) -> str:
    """The file and the overrides, for whoever finds the folder."""
    given = "".join(f"#   --{word}\n" for word in config.overrides)
    return f"# ssld ablate {config.file}\n{given}\n{written_out(Path(config.file))}"
