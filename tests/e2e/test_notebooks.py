"""The notebooks of docs/: they run from top to bottom, and the site's pages are what they say."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[test]'")
FOLDER = Path(__file__).parents[2] / "docs/notebooks"
BUILD: dict[str, Any] = runpy.run_path(str(FOLDER / "build.py"))
NAMES = BUILD["NAMES"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Iterator[tuple[dict[str, list], Path]]:
    """The cells of each notebook after a run, and the folder. One kernel runs all, as importing
    torch takes longer than some of them: what one has defined is forgotten before the next."""
    folder = tmp_path_factory.mktemp("notebooks")
    notebooks = {name: BUILD["read"](name) for name in NAMES}
    forget = "%reset -f"
    joined = nbformat.v4.new_notebook()
    for cell in notebooks["detector"].cells:  # so many steps are for AP, not for a test
        cell.source = re.sub(r"^STEPS = \d+", "STEPS = 8", cell.source, flags=re.MULTILINE)
    for notebook in notebooks.values():
        joined.cells += [nbformat.v4.new_code_cell(forget), *notebook.cells]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TERM", "dumb")
        BUILD["run"](joined, folder, allow_errors=True)
    yield {name: notebook.cells for name, notebook in notebooks.items()}, folder


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(executed, name):
    cells = executed[0][name]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert [x.evalue for x in outputs if x.output_type == "error"] == []
    said = [x for x in outputs if x.output_type == "stream"]
    assert [x.text for x in said if x.name == "stderr"] == []  # where warnings are
    assert not any("Warning:" in x.text or "Traceback" in x.text for x in said)
    assert sum("image/png" in x.get("data", {}) for x in outputs) >= 2


def test_all_that_is_written_is_in_one_folder(executed):
    assert [path.name for path in executed[1].iterdir()] == ["ssld-notebooks"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_what_its_notebook_says(name):
    notebook = BUILD["read"](name)
    text, pictures = BUILD["page"](name, notebook)
    again = "run `python docs/notebooks/build.py` and commit what it writes"
    assert (FOLDER / f"{name}.md").read_text(encoding="utf-8") == text, again
    kept = {f"{name}_files/{x.name}": x.read_bytes() for x in FOLDER.glob(f"{name}_files/*")}
    assert kept == pictures, again
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_python_and_has_one_line_to_change(name):
    cells = [x.source for x in BUILD["read"](name).cells if x.cell_type == "code"]
    lines = [line.strip() for cell in cells for line in cell.splitlines()]
    assert not [x for x in lines if x.startswith(("!", "%")) or "subprocess" in x]
    assert len(cells[0].splitlines()) == 1 and "None" in cells[0] and "# your" in cells[0]
