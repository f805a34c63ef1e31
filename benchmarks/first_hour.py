"""What newcomers type in their first hour with five libraries, and the same here: is it one, too?

    python benchmarks/first_hour.py            # all of first_hour.yaml, then docs/first-hour.md
    python benchmarks/first_hour.py --page     # the page alone, of docs/first-hour.csv

Needs no network and no GPU: ours run on small sets that are made here (`first_hour_sets.py`), with
small networks of random weights in place of the named ones (`STAND_INS`, `swap`) and with the words
of `small` added. docs/first-hour.csv has what was really run, its exit code, and whether it left
the files that it should. Some minutes of a core.
"""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import first_hour_sets
import yaml
from measure import markdown, parser

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_suffix(".yaml")
PAGE = ROOT / "docs" / "first-hour.md"
RESULTS = ROOT / "docs" / "first-hour.csv"
MARK = "<!-- What follows is written by benchmarks/first_hour.py. -->\n"
COLUMNS = ("task", "run", "exit_code", "made")
STAND_INS = {
    r"\bseresnet34\b": "resnet10t",
    r"\befficientnet_b2\b": "test_efficientnet",
    r"\bresnext50_32x4d\b": "resnet10t",
    r"\bresnet50d?\b": "resnet10t",
    r"(?<=--nproc_per_node )[48]": "1",
}
LANGUAGES = {"file": "text", "sh": "bash", "python": "python"}
"""Of the blocks of a row."""
TAIL = 2000
"""Characters of a failed command's output that are shown."""

Row = dict[str, Any]
Results = Mapping[str, Mapping[str, str]]
"""Lines of docs/first-hour.csv by task."""


def rows() -> list[Row]:
    """All tasks, in the order in which later ones use what earlier ones leave."""
    found: list[Row] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def commands(text: str) -> list[str]:
    """Of a shell block, each on one line."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [x for x in joined.splitlines() if x.strip() and not x.lstrip().startswith("#")]


def lines(blocks: Mapping[str, str]) -> int:
    """Logical ones: a command or a call is one, however it is broken."""
    python = tokenize.generate_tokens(io.StringIO(blocks.get("python", "")).readline)
    return (
        sum(token.type == tokenize.NEWLINE for token in python)
        + len(commands(blocks.get("sh", "")))
        + len(commands(blocks.get("file", "")))
    )


def to_run(row: Row, kind: str) -> str:
    """A block with its stand-ins."""
    text = "\n".join(commands(row["here"][kind])) if kind == "sh" else row["here"][kind]
    for named, stands_in in row.get("swap", {}).items():
        text = text.replace(named, stands_in)
    for named, stands_in in STAND_INS.items():
        text = re.sub(named, stands_in, text)
    if kind == "sh" and "small" in row:
        text += " " + row["small"]
    return text


def run(row: Row, work: Path) -> dict[str, str]:
    """Run a row in a folder: a line of docs/first-hour.csv."""
    code, typed = 0, []
    for kind in row["here"]:
        if kind == "file":
            name, _, content = row["here"][kind].partition("\n")
            (work / name.removeprefix("# ")).write_text(content, encoding="utf-8")
            continue
        text = to_run(row, kind)
        typed.append(text)
        program = [sys.executable, "-c"] if kind == "python" else ["bash", "-ec"]
        done = subprocess.run(
            [*program, text], cwd=work, env=_environment(work), capture_output=True, text=True
        )
        code = code or done.returncode
        if done.returncode:
            print(done.stdout[-TAIL:], done.stderr[-TAIL:], sep="\n", flush=True)
    missing = [name for name in row.get("makes", []) if not (work / name).exists()]
    if missing:
        print(f"not made: {', '.join(missing)}")
    made = "no" if missing else "yes"
    return dict(zip(COLUMNS, (row["task"], "\n".join(typed), str(code), made), strict=True))


def _environment(work: Path) -> dict[str, str]:
    """Without a network, and with the `ssld` of this checkout."""
    program = work / "bin" / "ssld"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ssld "$@"\n')
        program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.defpath])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "XDG_CACHE_HOME": str(work / "cache")}


def works(row: Row, result: Mapping[str, str] | None) -> str:
    """yes, partly or no, and a word why."""
    if "here" not in row:
        return f"no: {row['but']}"
    if result is None:
        return "not run"
    if result["exit_code"] != "0":
        return f"no: it ends with {result['exit_code']}"
    if result["made"] != "yes":
        return "no: it leaves no files"
    return f"partly: {row['but']}" if "but" in row else "yes"


def page(results: Results) -> str:
    """The table, and under it each task's commands."""
    every = rows()
    verdicts = [works(row, results.get(row["task"])) for row in every]
    counts = {x: sum(v.partition(":")[0] == x for v in verdicts) for x in ("yes", "partly", "no")}
    first = ", ".join(f"{count} {word}" for word, count in counts.items())
    more = [r["task"] for r in every if "here" in r and lines(r["here"]) > lines(r["there"])]
    table = markdown(
        ("", "task", "of", "lines there", "lines here", "works here"),
        (
            (
                str(i),
                row["task"],
                row["of"],
                str(lines(row["there"])),
                str(lines(row["here"])) if "here" in row else "",
                verdict,
            )
            for i, (row, verdict) in enumerate(zip(every, verdicts, strict=True), 1)
        ),
    )
    longer = f"More lines here than there: {', '.join(more)}." if more else ""
    head = [f"{len(every)} tasks: {first}. {longer}".rstrip(), "", *table, ""]
    return "\n".join([*head, *_blocks(every)])


def _blocks(every: list[Row]) -> Iterator[str]:
    for i, row in enumerate(every, 1):
        yield f"## {i}. {row['task']}\n"
        for where in ("there", "here"):
            if where in row:
                yield f"{row['of']}, `{row['page']}`:\n" if where == "there" else "Here:\n"
            for kind, text in row.get(where, {}).items():
                yield f"```{LANGUAGES[kind]}\n{text.rstrip()}\n```\n"


def read_results() -> Results:
    """Of the last runs."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return {line["task"]: line for line in csv.DictReader(file)}


def write_page() -> None:
    """What is written by hand stays above the mark."""
    own = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(own + MARK + "\n" + page(read_results()).rstrip() + "\n", encoding="utf-8")


def run_all(work: Path, wanted: Callable[[int], bool]) -> None:
    """Run the tasks of these numbers; lines of others stay in docs/first-hour.csv."""
    for i, row in enumerate(rows(), 1):
        if "here" in row and wanted(i):
            result = run(row, work)
            print(i, works(row, result), row["task"], sep="\t", flush=True)
            _write({**read_results(), row["task"]: result})


def _write(results: Results) -> None:
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(results[r["task"]] for r in rows() if r["task"] in results)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--page", action="store_true", help="run nothing")
    words.add_argument("--only", type=int, nargs="+", help="these tasks, after those they need")
    words.add_argument(
        "--work", type=Path, help="folder to work in; by default one that is removed"
    )
    given = words.parse_args()
    if not given.page:
        with tempfile.TemporaryDirectory() as folder:
            work = (given.work or Path(folder)).resolve()
            first_hour_sets.make(work)
            run_all(work, lambda i: given.only is None or i in given.only)
    write_page()


if __name__ == "__main__":
    main()
