"""Run the notebooks of this folder, and write what they show into them and onto the site's pages.

    pip install -e '.[test]'
    python docs/notebooks/build.py                # all, or the names of some: distil curate

A notebook is the truth: change it in Jupyter, then run this. NAME.md and NAME_files/ are what
nbconvert makes of NAME.ipynb; `tests/e2e/test_notebooks.py` compares them, and runs the notebooks.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = ("distil", "detector", "curate")
"""In the order in which they are read."""
DRAWN_OVER = re.compile(r"[^\n]*\r(?=[^\n])")
"""What a progress bar showed before it was drawn anew."""
COLOURS = 128
"""Of a picture: a third of the bytes, and no eye sees it."""


def read(name: str) -> NotebookNode:
    """A notebook of this folder."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run(notebook: NotebookNode, folder: Path, *, allow_errors: bool = False) -> None:
    """Run all cells from top to bottom in a new kernel, and keep what they show in them.

    Args:
        folder: in which the kernel is.

    Raises:
        CellExecutionError: a cell failed, unless `allow_errors`.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        allow_errors=allow_errors,
        record_timing=False,
        coalesce_streams=True,
        timeout=None,
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            tidy(output)


def tidy(output: NotebookNode) -> None:
    """Text as it is seen in the end, pictures of few bytes."""
    if output.output_type == "stream":
        lines = DRAWN_OVER.sub("", output.text).splitlines()
        output.text = "\n".join(x.rstrip() for x in lines if x.strip()) + "\n"
    elif "image/png" in output.get("data", {}):
        picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        file = io.BytesIO()
        picture.convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(file.getvalue()).decode()


def page(name: str, notebook: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook, and its pictures by their place beside it."""
    resources = {"output_files_dir": f"{name}_files", "unique_key": name}
    text, made = MarkdownExporter().from_notebook_node(notebook, resources)
    text = text.replace(".ipynb)", ".md)")
    title, rest = text.strip().split("\n", 1)
    where = f"This page is the notebook [{name}.ipynb]({name}.ipynb) with what it shows."
    lines = [x.rstrip() for x in f"{title}\n\n{where}\n{rest}".splitlines()]
    return "\n".join(lines) + "\n", made["outputs"]


def write(name: str, notebook: NotebookNode) -> None:
    """The notebook, its page and the page's pictures."""
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")
    text, pictures = page(name, notebook)
    shutil.rmtree(FOLDER / f"{name}_files", ignore_errors=True)
    (FOLDER / f"{name}_files").mkdir()
    for place, content in pictures.items():
        (FOLDER / place).write_bytes(content)
    (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def main(names: list[str]) -> None:
    for name in names or NAMES:
        notebook = read(name)
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
        write(name, notebook)


if __name__ == "__main__":
    main(sys.argv[1:])
