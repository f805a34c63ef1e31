"""`ssld compare` on run folders written by hand: what it prints, its page, its JSON, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ssld.__main__ import main

SHA = "0123456789abcdef" * 4


def config(**changes) -> dict:
    base = {
        "out": "somewhere",
        "resume": False,
        "batch_size": 8,
        "student": {"arch": "resnet18", "args": {}},
        "data": {"unlabeled": ["/images"], "val": ["/val"], "workers": 0},
        "teachers": [],
        "loss": {"name": "kl", "temperature": 1.0},
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        base[group] = {**base[group], name: value} if name else value
    return base


def facts(**changes) -> dict:
    base = {"steps": 40, "teacher_sha256": SHA, "data_sha256": SHA, "val_sha256": SHA}
    base |= {"processes": 1, "device": "cpu", "versions": {"torch": "2.14.1"}}
    return {**base, "exported": {"step": 40, "metric": "agreement1", "value": 0.5}, **changes}


def lines(agreement=(0.5, 0.25), steps=(20, 40), speed=(100, 300), **evaluated) -> list[dict]:
    found = []
    for step, share, rate in zip(steps, agreement, speed, strict=False):
        at = {"step": step, "epoch": step / 10}
        found.append({"kind": "train", **at, "loss": 1 / step, "lr": 0.1, "seconds": 1800.0})
        found[-1] |= {"images_per_second": rate, "data_wait_percent": 5.0}
        found.append({"kind": "eval", **at, "agreement1": share, "divergence": 0.5, "images": 24.0})
        found[-1] |= {"entropy_student": 1.0, "verdict": f"flat <since> {step}; " + "long " * 30}
        found[-1] |= evaluated
    return found


def folder(path: Path, settings=None, known=None, logged=None) -> str:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(settings or config(), sort_keys=False))
    (path / "run.json").write_text(json.dumps(known or facts()))
    text = "".join(json.dumps(line) + "\n" for line in (lines() if logged is None else logged))
    (path / "metrics.jsonl").write_text(text)
    return str(path)


@pytest.fixture
def compare(tmp_path, capsys, monkeypatch):
    """Compare folders; gives what was printed, the JSON and the page, with `curves` or without."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*folders: str, curves: bool = False) -> tuple[str, dict, str]:
        if not curves:  # drawing is what takes time
            monkeypatch.setattr("ssld.compare.report.overlays", lambda runs: [])
        out, result = tmp_path / "c.html", tmp_path / "c.json"
        assert main(["compare", *folders, "--out", str(out), "--json", str(result)]) == 0
        said = capsys.readouterr().out
        assert said.rstrip().endswith(str(out))
        return said, json.loads(result.read_text()), out.read_text()

    return run


def row(said: str, name: str) -> list[str]:
    return next(line for line in said.splitlines() if line.startswith(name)).split()


def test_differences_come_first_and_hide_nothing_that_matters(compare, tmp_path):
    a = folder(tmp_path / "a", config(out="a"))
    changed = config(out="b", resume=True, data__workers=4, loss__weight=None)
    known = facts(device="cuda", processes=2, versions={"torch": "2.13.0"})
    b = folder(tmp_path / "b", changed, known)
    said, result, page = compare(a, b)
    assert row(said, "data.workers") == ["data.workers", "0", "4"]
    assert row(said, "loss.weight") == ["loss.weight", "-", "null"]
    keys = ["data.workers", "loss.weight", "processes", "device", "versions.torch"]
    assert sorted(result["differences"]) == sorted(keys)
    assert result["differences"]["device"] == {"a": "cpu", "b": "cuda"}
    assert result["differences"]["loss.weight"] == {"b": None}
    for text, mark in ((said, ""), (page, "<h2>")):
        order = [f"{mark}config differences", "data.workers", f"{mark}results"]
        places = [text.lower().index(words) for words in order]
        assert places == sorted(places)
    assert "batch_size" not in said


def test_several_teachers_and_what_changed_on_resume(compare, tmp_path):
    several = config(teachers=[{"arch": "x"}, {"arch": "y"}])
    a, b = folder(tmp_path / "a", several), folder(tmp_path / "b")
    c = folder(tmp_path / "c", known=facts(changed_on_resume=["batch_size was 4 and is 8"]))
    said, result, _ = compare(a, b, c)
    assert row(said, "teachers.1.arch") == ["teachers.1.arch", "y", "-", "-"]
    assert list(result["differences"]["changed_on_resume"]) == ["c"]


def test_no_difference(compare, tmp_path):
    said, result, page = compare(folder(tmp_path / "a"), folder(tmp_path / "b"))
    assert "(none)" in said and "(none)" in page and result["differences"] == {}
    assert "warning" not in said


def test_results_and_their_best(compare, tmp_path):
    a = folder(tmp_path / "a")
    going = facts()
    del going["exported"]
    logged = lines((0.5, 0.75), knn=0.6, speed=(100, 200))[:-2] + lines((0.75,), (30,), (200,))
    b = folder(tmp_path / "b", known=going, logged=logged)
    with (tmp_path / "b/metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # still being written
    said, result, page = compare(a, b)
    first, second = result["runs"]
    assert (first["agreement1_best"], first["agreement1_last"]) == (0.5, 0.25)
    assert (first["images_per_second"], first["hours"]) == (200, 1.0)
    assert (first["exported_step"], second["exported_step"]) == (40, None)
    assert (second["step"], second["steps"], second["knn_best"]) == (30, 40, 0.6)
    assert row(said, "result ") == ["result", "a", "b"]
    assert row(said, "steps")[1:] == ["40/40", "30/40"]
    assert row(said, "epochs")[1:] == ["4.00", "3.00"]
    assert row(said, "loss")[1:] == ["*0.025", "0.03333"]
    assert row(said, "agreement@1 best")[2:] == ["50.0%", "*75.0%"]
    assert row(said, "agreement@1 last")[2:] == ["25.0%", "*75.0%"]
    assert "nearest neighbours" in said and "linear" not in said and "top-1" not in said
    assert "*0.5" not in said  # the same divergence in both: none is best
    assert "flat <since> 40; long" in said and "long " * 20 not in said  # shortened
    assert "<b>75.0%</b>" in page and "<b>50.0%</b>" not in page
    assert "flat &lt;since&gt; 40; " + "long " * 30 in page


@pytest.mark.parametrize(("scores", "weak"), [((0.02, 0.03), True), ((0.02, 0.4), False)])
def test_the_better_of_two_weak_detectors_is_no_best(compare, tmp_path, scores, weak):
    runs = [folder(tmp_path / f"{x}", logged=lines(ap=x)) for x in scores]
    said, _, page = compare(*runs)
    caution = "AP: all scores are below 5 %, too weak for a difference to mean anything."
    assert (caution in said, caution in page) == (weak, weak)
    assert any("*" in word for word in row(said, "AP best")) != weak


def test_the_page_is_one_file_with_a_plot_for_each_metric(compare, tmp_path):
    a = folder(tmp_path / "a <1>", config(), logged=lines(knn=0.6))
    b = folder(tmp_path / "b", logged=[x for x in lines() if x["kind"] == "train"])
    said, result, page = compare(a, b, curves=True)
    titles = ["loss", "agreement@1", "divergence", "nearest neighbours", "lr", "images per second"]
    assert [x.partition("<")[0] for x in page.split("<figcaption>")[1:]] == titles
    assert page.count("data:image/png;base64,") == len(titles)
    assert "http" not in page and "a &lt;1&gt;" in page and "a <1>" not in page
    assert result["runs"][1]["verdict"] is None and row(said, "verdict")[-1] == "-"


def test_labels_are_as_short_as_can_be(compare, tmp_path):
    folders = [folder(tmp_path / x) for x in ("one/x/run", "two/x/run", "two/other")]
    _, result, _ = compare(*folders)
    assert [run["label"] for run in result["runs"]] == ["one/x/run", "two/x/run", "other"]


@pytest.mark.parametrize(
    ("settings", "known", "said"),
    [
        (config(), facts(val_sha256="f" * 64), "The held-out images differ (val_sha256)"),
        (config(), facts(teacher_sha256="f" * 64), "The teachers differ"),
        (config(loss__name="js"), facts(), "The losses differ (loss.name)"),
    ],
)
def test_what_does_not_compare_is_said_and_has_no_best(compare, tmp_path, settings, known, said):
    a = folder(tmp_path / "a")
    logged = [x | {"divergence": 0.1} for x in lines((0.9, 0.9))]
    printed, _, page = compare(a, folder(tmp_path / "b", settings, known, logged))
    assert f"warning: {said}" in printed
    assert said in page
    assert "*0.1" not in printed and "<b>0.1</b>" not in page


def test_other_training_images(compare, tmp_path):
    other = facts(data_sha256="f" * 64)
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", known=other)
    said, result, _ = compare(a, b)
    assert "warning" not in said  # both are evaluated on data.val
    assert row(said, "data_sha256")[1:] == [SHA[:12], "f" * 12]
    assert result["differences"]["data_sha256"]["a"] == SHA


def test_wide_tables_are_folded_in_a_terminal(compare, tmp_path, monkeypatch):
    runs = [folder(tmp_path / (name * 50)) for name in "abc"]
    assert max(map(len, compare(*runs)[0].splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "100")
    said, _, page = compare(*runs)
    assert max(map(len, said.splitlines())) <= 100
    assert page.count("b" * 50) > 3


def test_torch_is_not_imported(tmp_path):
    folders = [folder(tmp_path / "a"), folder(tmp_path / "b")]
    code = (
        "import sys; from ssld.cli.run import main; assert main(['compare', *sys.argv[1:]]) == 0; "
    )
    code += "assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, *folders, "--out", str(tmp_path / "c.html")]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


def bad(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """What a user may get wrong -> (arguments, words of the answer)."""
    a = folder(tmp_path / "a")
    (tmp_path / "link").symlink_to(a)
    (tmp_path / "photos").mkdir()
    empty = folder(tmp_path / "empty", logged=[])
    unlogged = Path(folder(tmp_path / "unlogged"))
    (unlogged / "metrics.jsonl").unlink()
    broken = {}
    for name, text in {
        "config.yaml": "a: [",
        "run.json": "{",
        "metrics.jsonl": '{"a": 1}\n',
    }.items():
        broken[name] = folder(tmp_path / f"broken {name}")
        (Path(broken[name]) / name).write_text(text)
    return {
        "none": ([], "at least two"),
        "one": ([a], "at least two"),
        "missing": ([a, str(tmp_path / "nowhere")], "nowhere is no folder"),
        "no run": ([a, str(tmp_path / "photos")], "photos is not a run folder"),
        "empty": ([a, empty], "empty has no logged line yet"),
        "unlogged": ([a, str(unlogged)], "unlogged has no logged line yet"),
        "twice": ([a, f"{a}/"], "given twice"),
        "link": ([a, str(tmp_path / "link")], "given twice"),
        "config": ([a, broken["config.yaml"]], "config.yaml is damaged"),
        "facts": ([a, broken["run.json"]], "run.json is damaged"),
        "metrics": ([a, broken["metrics.jsonl"]], "metrics.jsonl is damaged"),
        "option": ([a, empty, "--jsn", "x"], "did you mean 'json'"),
        "json": ([a, a, "--json", str(tmp_path)], "name a file in a folder that exists"),
        "same": ([a, a, "--json", str(tmp_path / "c.html")], "name two files"),
    }


BAD = ["none", "one", "missing", "no run", "empty", "unlogged", "twice", "link", "config", "facts"]
BAD += ["metrics", "option", "json", "same"]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(tmp_path, capsys, case):
    arguments, words = bad(tmp_path)[case]
    out = tmp_path / "c.html"
    assert main(["compare", *arguments, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert words in said.err
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_out_needs_a_folder(tmp_path, capsys):
    folders = [folder(tmp_path / "a"), folder(tmp_path / "b")]
    assert main(["compare", *folders, "--out", str(tmp_path / "no" / "c.html")]) == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err
    assert main(["compare", *folders, "--out", str(tmp_path / "page")]) == 2
    assert f"{tmp_path / 'page'}.html say" in capsys.readouterr().err
