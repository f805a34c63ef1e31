"""Parity of every class of the catalogue, as the table of docs/zoo.md.

    python benchmarks/zoo_table.py [CLASS ...] > table.md

Weights are reproducible random ones (tests/zoo/reference.py): the class's converted network is
compared with what Paddle answered for them, and its ONNX export with eager PyTorch (onnxruntime;
needs `pip install 'ssld[onnx]'`). Half an hour for all on one core.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from measure import parser, show

import zoo
from zoo.architectures import is_plain
from zoo.export.classifier import export
from zoo.paddle.convert import convert, entry_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))
import reference  # noqa: E402

HEAD = (
    "class", "loads into", "max abs", "relative to the logits' deviation", "strides", "channels",
    "ONNX, relative",
)  # fmt: skip


def row(name: str) -> list[str]:
    """Cells of one class."""
    entry = entry_of(name)
    weights = {k: torch.from_numpy(reference.fill(k, s)) for k, s in reference.shapes(name).items()}
    model = timm.create_model(entry.name).eval()
    model.load_state_dict(convert(weights, name, name))
    with torch.inference_mode():
        result = model(torch.from_numpy(reference.INPUT)).numpy()
    expected = reference.logits(name)
    off = float(np.abs(result - expected).max())
    features = zoo.backbone(entry.name, pretrained=False).feature_info
    with tempfile.TemporaryDirectory() as folder:
        onnx = export(model, "onnx", Path(folder) / "a.onnx")
    return [
        name,
        f"`{entry.architecture}`" + (" (plain timm)" if is_plain(entry) else ""),
        f"{off:.1e}",
        f"{off / expected.std():.1e}",
        " ".join(map(str, features.reduction())),
        " ".join(map(str, features.channels())),
        f"{onnx.relative:.1e}",
    ]


def main() -> None:
    words = parser(__doc__)
    words.add_argument("classes", nargs="*", default=reference.CLASSES)
    show(HEAD, map(row, words.parse_args().classes))


if __name__ == "__main__":
    main()
