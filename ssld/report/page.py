"""Pages that are one file and need no network: one Jinja2 environment, escaping on.

A page is a template beside the code that fills it, named by its path in the project, that extends
`ssld/report/base.html`. Whatever a stranger names (files, classes, settings, backbones) reaches it
as a value and is shown as text: only `Markup` is not escaped, and only the macros of
`ssld/report/elements.html` make it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ssld.common.errors import attempt
from ssld.common.files import write_atomically
from ssld.report.plots import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bar = tuple[Sequence[str], Sequence[tuple[float, str]]]
"""Cells, the first a heading, and parts: (length, colour)."""
JPEG_QUALITY = 85
"""Of photographs."""
PIXELATED_BELOW = 400
"""Width in px of a picture that is shown with its pixels as squares."""


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page in one step.

    Args:
        template: its path in the project, such as `ssld/distill/report.html`.
        values: what the template names, a title among it.
    """
    write_atomically(path, ENVIRONMENT.get_template(template).render(**values))


def plot(caption: str, figure: Figure) -> Markup:
    """A matplotlib figure as an element of a page."""
    return _element("picture", caption, data_uri(png(figure)))


def picture(caption: str, pixels: np.ndarray) -> Markup:
    """uint8 [h, w, 3] as an element of a page; small ones keep their pixels."""
    css = "pixels" if pixels.shape[1] < PIXELATED_BELOW else ""
    return _element("picture", caption, pixels_uri(pixels), css)


def photograph(caption: str, pixels: np.ndarray) -> Markup:
    """uint8 [h, w, 3] as an element of a page, as JPEG: for pages of many."""
    uri = pixels_uri(pixels, "JPEG", quality=JPEG_QUALITY)
    return _element("picture", caption, uri)


def bars(caption: str, rows: Sequence[Bar], head: Sequence[str]) -> Markup:
    """Horizontal bars in HTML: browsers know the letters of all languages."""
    return _element("figure", caption, _element("bars", rows, head))


def grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """uint8 [n, h, w, 3] -> one white-lined picture, `columns` images a row."""
    n, h, w, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    gap = max(1, h // 32)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def pixels_uri(pixels: np.ndarray, format: str = "PNG", **options: Any) -> str:
    """uint8 [h, w, 3] as a data: URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return data_uri(buffer.getvalue(), format.lower())


def data_uri(content: bytes, kind: str = "png") -> str:
    """The bytes of an image as a data: URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _element(macro: str, *values: Any) -> Markup:
    return getattr(ENVIRONMENT.get_template("ssld/report/elements.html").module, macro)(*values)


def _attempted(title: str, make: Callable[[], Sequence[Markup]]) -> Markup:
    """The figures of a section; why, where they cannot be made."""
    return attempt(f"the section {title!r} of report.html", lambda: Markup("").join(make()))


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parents[2]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.globals["attempted"] = _attempted
ENVIRONMENT.filters["pixels_uri"] = pixels_uri
ENVIRONMENT.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
