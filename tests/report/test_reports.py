"""Names of classes and files on pages and in plots, and reports that fail: no run is lost."""

from __future__ import annotations

import html
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ssld.__main__ import main
from ssld.common.errors import InputError, Interrupted, attempt
from ssld.common.files import cannot_write
from ssld.common.text_table import text_table
from ssld.distill.report import agreement_by_class
from ssld.engine import evaluation
from ssld.engine.evaluation import Evaluator
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.report import page, plots, training

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted(x for part in ("ssld", "downstream") for x in (ROOT / part).rglob("*.html"))
NAMES = [
    "$5_to_$10",
    r"\frac{a}{",
    "x^2_%&",
    "_hidden",
    "two\nlines\tand a tab",
    "\U0001f600 \U0001f468\u200d\U0001f469",
    "\u9c7c \uff08\u6d77\uff09",
    "\u0633\u0645\u0643\u202e",
    "x" * 5000,
    "latin \udce9",
    "\x00\x1b[31m",
    "<script>alert(1)</script>",
    "",
]


def test_every_name_is_drawn_as_it_is():
    figure = plots.new_figure()
    plot = plots.axes(figure, NAMES[0])
    for i, name in enumerate(NAMES):
        plot.plot([0, 1], [i, i], label=plots.label(name))
    plot.set_yticks(range(len(NAMES)), [plots.label(name) for name in NAMES])
    figure.legend(loc="outside upper center")
    assert Image.open(io.BytesIO(plots.png(figure))).size[0] > 100
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    assert {"$5_to_$10", r"\frac{a}{"} <= {x.get_text() for x in plot.get_yticklabels()}


def test_plots_with_foreign_names():
    series = {name: [(0.0, 1.0), (1.0, 2.0)] for name in NAMES[:4]}
    assert "<img" in page.plot("a", plots.curves(series))


def test_one_step_alone_is_on_the_scale_of_all_steps():
    (plot,) = plots.curves({"a": [(30, 0.5)], "b": [(30, 0.2)]}).axes
    assert plot.get_xlim() == (0, 31.5)
    (plot,) = plots.curves({"a": [(30, 0.5)], "b": [(40, 0.2)]}, low=0).axes
    assert plot.get_xlim()[0] > 20 and plot.get_ylim()[0] == 0


def test_classes_are_named_on_the_page_in_any_language():
    measured = ClassificationMetrics(len(NAMES), torch.device("cpu"))
    measured.by_class = torch.tensor([[4.0, 1.0]] * len(NAMES))
    said = agreement_by_class(measured, NAMES)
    assert "\u9c7c" in said and "$5_to_$10" in said and "25%" in said
    assert "<script" not in said and len(said) < 10_000


def test_a_page_with_foreign_names_is_written(tmp_path):
    file = tmp_path / "a.html"
    values = {"file": NAMES[9], "explained": "", "failed": [], "plots": []}
    table = {"head": NAMES, "texts": 1, "rows": [(NAMES, [("cells/x", name) for name in NAMES])]}
    page.write_page(file, "ssld/ablate/report.html", title=NAMES[9], **table, **values)
    said = file.read_text(encoding="utf-8")
    assert r"latin \udce9" in said and "\u9c7c" in said and "<script>" not in said
    assert r"\udce9" in json.dumps(text_table(["a", "b"], [[x, "1"] for x in NAMES]))


def test_templates_escape_what_they_are_given():
    assert page.ENVIRONMENT.autoescape is True and len(TEMPLATES) > 5
    for path in TEMPLATES:
        assert page.ENVIRONMENT.get_template(path.relative_to(ROOT).as_posix())
        assert "|safe" not in path.read_text()
    with pytest.raises(UndefinedError):
        page.ENVIRONMENT.from_string("{{ missing }}").render()


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), MemoryError(), KeyError("x"), InputError("y")]
)
def test_what_fails_is_said_in_a_line(error, capsys):
    def fail() -> str:
        raise error

    said = attempt("the plot of <x>", fail)
    assert "&lt;x&gt;" in said and type(error).__name__ in said
    line = capsys.readouterr().err
    assert line.startswith("warning: the plot of <x> could not be made") and line.count("\n") == 1


def test_a_signal_and_a_full_disk_are_not_the_reports_fault(tmp_path):
    for error in (Interrupted("SIGTERM"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)):
            attempt("x", lambda error=error: (_ for _ in ()).throw(error))

    def full() -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise cannot_write(tmp_path, error) from error

    with pytest.raises(InputError):
        attempt("x", full)


@pytest.fixture
def dollars(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("$5_to_$10", "$10_to_$20", "over_$20_$"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i} $\u9c7c$.png")
    return tmp_path


def distill(root, teacher_file) -> int:
    data = [f"--data.labeled={root / 'images'}", f"--data.val={root / 'images'}"]
    return main(["distill", f"--out={root / '$run_1'}", "--steps=2", "--batch_size=4", *data,
                 f"--teacher.checkpoint={teacher_file}", "--teacher.verify=false",
                 "--student.arch=test_resnet", "--data.workers=0", "--augment.size=32",
                 "--trackers=[]", "--probe.every_epochs=0"])  # fmt: skip


def test_a_run_on_classes_with_dollars(dollars, teacher_file, capsys):
    assert distill(dollars, teacher_file) == 0
    said = (dollars / "$run_1" / "report.html").read_text()
    assert said.count("$10_to_$20") > 1 and "could not be made" not in said
    assert "warning:" not in capsys.readouterr().err


def test_a_run_whose_plots_all_fail_has_its_results(dollars, teacher_file, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr(Figure, "savefig", fail)
    assert distill(dollars, teacher_file) == 0
    out, err = dollars / "$run_1", capsys.readouterr().err
    said = (out / "report.html").read_text()
    assert "The section 'Training' of report.html could not be made (RuntimeError: no font)" in (
        html.unescape(said)
    )
    assert json.loads((out / "run.json").read_text())["exported"]["step"] == 2
    assert "Traceback" not in err and "no font" in err


def test_what_lies_in_a_reports_way_ends_no_run(dollars, capsys):
    lines = []
    way = SimpleNamespace(write_report=lambda *_: (dollars / "x").mkdir())
    evaluator = SimpleNamespace(task=way, run=SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True)), score=None, reported=0)  # fmt: skip
    for _ in range(2):  # the second time it is there already
        Evaluator.report(evaluator, SimpleNamespace(result=None))  # type: ignore[arg-type]
        lines.append(capsys.readouterr().err)
    assert lines[0] == "" and lines[1].startswith("warning: report.html could not be made")


def test_pictures_of_a_figure_do_not_warn():
    figure = plots.new_figure()
    plots.axes(figure, "\u9c7c")
    assert plots.png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("step", "facts", "reloads"), [(None, {}, True), (20, {}, True), (20, {"exported": {}}, False)]
)
def test_the_page_of_a_run_reloads_until_it_ends(step, facts, reloads, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "config.yaml").write_text("out: x\n")
    line = {"step": step, "epoch": 1.0, "loss": 0.5, "unreadable": 0, "lr": 0.1}
    lines = [{**line, "images_per_second_per_device": 9.0, "other_percent": 100.0}] if step else []
    history = SimpleNamespace(training=lambda: lines)
    folder = SimpleNamespace(path=tmp_path, history=history)
    run: Any = SimpleNamespace(folder=folder, total_steps=40)
    training.write_training_report(run, "ssld/report/training.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ('<meta http-equiv="refresh"' in text.partition("<body>")[0]) == reloads


def test_a_report_is_due_between_evaluations_too(monkeypatch):
    monkeypatch.setattr(evaluation, "REPORT_SECONDS", 60.0)
    now, written = time.monotonic(), []
    for reported, begun in ((-60, now), (now - 61, now - 99), (now - 9, now - 99)):
        told: Any = SimpleNamespace(reported=reported, begun=begun, report=written.append)
        Evaluator.report_when_due(told, reported)  # type: ignore[arg-type]
    assert written == [now - 61]
