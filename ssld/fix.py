"""The resolution fix: `accelerate launch -m ssld.fix --run RUN --out OUT [--a.b value ...]`.

Touvron et al. 2019, "Fixing the train-test resolution discrepancy" (FixRes), section 4: random
crops show a network larger objects in training than the centre crop does in a test, so it is better
at a larger test size, and better still once its classifier (and the norm before it) has seen the
statistics of that size. Nothing else is trained, on images as they are tested. SSLD table 1:
ResNet50-D 83.0 -> 84.0 %; the reference trains the classifier only, at 320 px.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssld import cli
from ssld.errors import InputError
from ssld.stage import inherited, open_start, prepare, resolutions_from
from ssld.stage_config import FixConfig

if TYPE_CHECKING:
    from ssld.distill import Distillation
    from ssld.network import Network
    from ssld.run.setup import ClassifierRun
    from ssld.supervised import Supervision
    from ssld.tally import Tally

TABLE = "resolutions.json"


def fix(config: FixConfig) -> None:
    """Train the classifier at a test size; evaluate at several before and after, export the best.

    Raises:
        InputError: a run that has not finished, no held-out image, bad settings or sources; nothing
            was written then.
    """
    from ssld.run.folder import check_out

    check_out(config)  # before torch is imported
    from ssld.data.views import EvalView
    from ssld.network import open_network
    from ssld.run.loop import train

    start = open_start(config.run)
    setup, student, teacher, digest, task = prepare(config, start)
    if not setup.val:
        raise InputError(
            "data.val is empty and data.holdout is 0: held-out images choose the resolution"
        )
    student.freeze_but(trained_parts(student, config.train))
    view = EvalView(student.input_size, student.crop_pct, student.interpolation)
    run = setup.start(student, teacher=teacher, teacher_sha256=digest, view=view)
    trained_at = int(start.settings["augment"]["size"])
    sizes = sorted({*(config.resolutions or resolutions_from(trained_at)), student.input_size})
    before = _known(run, sizes) or sweep(run, task, copy.deepcopy(student), sizes)
    table = {"trained_at": trained_at, "fixed_at": student.input_size, "before": before}
    _write(run, table)
    tally = train(run, task, student)
    fixed = open_network("student", arch=None, checkpoint=config.out).to(setup.device)
    after = sweep(run, task, fixed, sizes)
    _export(run, fixed, tally, {**table, "after": after})


def trained_parts(network: Network, train: str) -> list[str]:
    """Names of the modules of `network.model` that a fix trains."""
    import torch

    names = {module: name for name, module in network.model.named_modules()}
    classifier = names[network.model.get_classifier()]  # type: ignore[operator]
    if train == "classifier":
        return [classifier]
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: called.append(names[module]))
        for module in names
        if "Norm" in type(module).__name__
    ]
    size = network.input_size
    device = next(network.parameters()).device
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device))
    network.train(training)
    for hook in hooks:
        hook.remove()
    if not called:
        raise InputError("train is classifier_and_norm but the student has no norm layer")
    return [classifier, called[-1]]


def sweep(
    run: ClassifierRun, task: Distillation | Supervision, network: Network, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """The metrics of the held-out images at each size; changes `network.input_size`."""
    import torch

    from ssld.data.views import EvalView

    network.to(run.accelerator.device).eval()
    rows = []
    for size in sizes:
        network.input_size = size
        view = EvalView(size, network.crop_pct, network.interpolation)
        batches = task.held_out(run, view, f"evaluate at {size} px")
        try:
            with torch.inference_mode(), run.accelerator.autocast():
                tally = task.evaluate(network, batches)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"resolutions: the student does not run on images of {size} px "
                f"({' '.join(str(error).split())[:200]}); leave that size out"
            ) from error
        tally.reduce(run.accelerator, cut_short=False)
        rows.append({"size": size, **tally.metrics()})
    return rows


def chosen(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], best_by: str
) -> tuple[str, str, dict[str, Any]]:
    """The metric that decides, whether the best row by it is one `before` or `after` the fix, and
    that row; of equal ones the one after, at the smallest size.

    Args:
        best_by: `checkpoint.best`; a share, or else agreement, or where there is no teacher top-1.
    """
    metric = best_by if best_by in ("agreement1", "agreement5", "top1") else "agreement1"
    metric = metric if metric in after[0] else "top1"
    rows = [("before", row) for row in before] + [("after", row) for row in after]
    moment, best = max(rows, key=lambda x: (x[1][metric], x[0] == "after", -x[1]["size"]))
    return metric, moment, best


def _known(run: ClassifierRun, sizes: Sequence[int]) -> list[dict[str, Any]] | None:
    """What a stopped run had evaluated before its first step, the same on all processes."""
    from accelerate.utils import broadcast_object_list

    found = [None]
    path = run.folder.path / TABLE
    if run.config.resume and path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))["before"]
        found = [rows if [row["size"] for row in rows] == list(sizes) else None]
    return broadcast_object_list(found)[0]


def _write(run: ClassifierRun, table: dict[str, Any]) -> None:
    from ssld.run.folder import write_atomically

    if run.accelerator.is_main_process:
        write_atomically(run.folder.path / TABLE, json.dumps(table, indent=2) + "\n")
    run.accelerator.wait_for_everyone()


def _export(run: ClassifierRun, fixed: Network, tally: Tally | None, table: dict[str, Any]) -> None:
    """Write table, exported configuration and report. Where the fix was for nothing, the student is
    exported as it came."""
    from ssld.network import open_network
    from ssld.report.run import write_report
    from ssld.run.export import export
    from ssld.text_table import text_table

    before, after = table["before"], table["after"]
    metric, moment, best = chosen(before, after, run.best_by)
    found = {"chosen": best["size"], "classifier": moment, "metric": metric}
    _write(run, {**table, **found})
    if not run.accelerator.is_main_process:
        return
    facts = json.loads((run.folder.path / "run.json").read_text(encoding="utf-8"))
    network, step = fixed, facts["exported"]["step"]
    if moment == "before":
        start = run.config.run  # type: ignore[attr-defined]
        network, step = open_network("student", arch=None, checkpoint=start), 0
    network.input_size = best["size"]
    digest = export(network, run.folder.path / "student", step)
    exported = {"step": step, "metric": metric, "value": best[metric], "sha256": digest}
    run.folder.record("exported", exported)
    run.folder.record("resolution", {**found, "metrics": best})
    write_report(run, network.to(run.accelerator.device), tally)
    rows = [
        [f"{a['size']} px", *(f"{x[metric]:.2%}{' *' * (x is best)}" for x in (b, a))]
        for b, a in zip(before, after, strict=True)
    ]
    print(text_table(["at", f"{metric} before", "after"], rows))
    as_it_came = "" if moment == "after" else ", the classifier as it came: the fix brought nothing"
    print(f"* exported{as_it_came}; chosen on these very images, so a little too good")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.command("ssld fix", FixConfig, fix, argv, defaults=inherited("fix"))


if __name__ == "__main__":
    raise SystemExit(main())
