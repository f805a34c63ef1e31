"""A trained classifier for places where timm is not: ONNX, TorchScript, torchvision.

Every export is loaded back from its file and compared with the network it came from, at several
inputs, batch sizes and image sizes, before it gets its name: a file that is there was checked.

    onnx         one .onnx file (above 2 GB of weights a second one, .onnx.data)
    torchscript  one .pt file, scripted, or traced where scripting is impossible
    torchvision  a folder with model.py and model.safetensors (`zoo/export/torchvision_resnet.py`)

The batch size is free in all of them. Height and width are free where the network itself takes
other sizes and the export was right there; else other sizes are refused by the file.
The preprocessing and the label names travel inside of the file (`facts`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit.frontend import FrontendError

from zoo.errors import InputError, did_you_mean
from zoo.export import torchvision_resnet
from zoo.export.checked import (
    INSTEAD,
    facts,
    placed,
    quiet,
    refusing,
    require_packages,
    write_onnx,
)

TOLERANCE = 1e-4
"""Largest difference, in standard deviations of the logits. Another order of float32 sums makes
1e-7 to 1e-5 (hundreds of layers); an operator translated wrongly (padding, rounding of sizes, an
approximated activation) 1e-3 and more; and 1e-4 moves no probability by a visible digit."""

Run = Callable[[Tensor], Tensor]
"""What an exported file computes: float32 [batch, channels, height, width] -> logits."""

_Trial = tuple[Tensor, Tensor]
"""Images as above, and their eager logits as float64 [batch, classes]."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from eager PyTorch (float32, CPU).

    Attributes:
        paths: the file or the folder to load, then further files (ONNX above 2 GB).
        format: one of FORMATS.
        method: "dynamo, opset 20", "script", "trace" or "torchvision ResNet".
        max_abs: largest absolute difference of a logit.
        relative: `max_abs` in standard deviations of all eager logits.
        batch_sizes: at which it was compared.
        inputs: number of images compared.
        sizes: (height, width) at which it was compared.
        any_size: whether the file takes images of other heights and widths.
    """

    paths: tuple[Path, ...]
    format: str
    method: str
    max_abs: float
    relative: float
    batch_sizes: tuple[int, ...]
    inputs: int
    sizes: tuple[tuple[int, int], ...]
    any_size: bool


def export(model: nn.Module, format: str, out: Path) -> Exported:
    """Write `model` in another format, checked against itself; `model` stays as it is.

    Args:
        model: a timm classifier; its `pretrained_cfg` says input_size, mean, std, ...
        format: one of FORMATS.
        out: the file, or for torchvision the folder; an earlier export there is replaced.

    Raises:
        InputError: the format is unknown, packages are missing, the network cannot be expressed or
            `out` cannot be written, or the export differs from eager PyTorch by more than
            TOLERANCE. Nothing is left behind, and what was there is untouched.
    """
    _check_request(format, out)
    header = facts(model)
    network = copy.deepcopy(model).cpu().float().eval()
    trials = _trials(network, _example(header).shape[1:])
    with placed(out) as path:
        return _write_checked(network, format, path, header, trials)


def _check_request(format: str, out: Path) -> None:
    if format not in FORMATS:
        hint = did_you_mean(format, FORMATS, cutoff=0.4)
        raise InputError(f"unknown format {format!r}, the formats are {', '.join(FORMATS)}{hint}")
    if out.name in ("", ".."):
        raise InputError(f"{out} has no name of its own: give the path of a new file or folder")
    if format == "onnx":
        require_packages("onnx", "onnxscript", "onnxruntime")
    if format == "torchvision":
        torchvision_resnet.check_folder(out)
    elif out.is_dir():
        raise InputError(f"{out} is a folder, and {format} is a file: give {out / 'model'}.*")


# The comparison


def _trials(network: nn.Module, input_size: Sequence[int]) -> list[_Trial]:
    """Inputs and eager logits: the network's own size first, then sizes that it also takes."""
    channels, height, width = input_size
    errors = (AssertionError, RuntimeError, ValueError)
    what = f"the network takes no images of {height} x {width}, mend its pretrained_cfg"
    with refusing(what, *errors):
        trials = [(x, _eager(network, x)) for x in _images(channels, height, width)]
    logits = torch.cat([logits for _, logits in trials])
    if not logits.isfinite().all() or not logits.std() > 0:
        raise InputError(
            "the network's logits are not finite or all the same, so that no export of it can be "
            "checked: export a trained network"
        )
    # Multiples of 32, and odd ones: what rounds sizes, or pads as TensorFlow does, differs there.
    for batch, size in ((2, (height + 32, width + 64)), (1, (height + 17, width + 1))):
        images = _noise(batch, (channels, *size), seed=100)
        try:
            trials.append((images, _eager(network, images)))
        except errors:
            continue  # networks with windows or position embeddings say so themselves
    return trials


def _images(channels: int, height: int, width: int) -> list[Tensor]:
    """Normalised images, in batches of 1, 1, 2 and 5: gradient, noise, constants, noise."""
    shape = (channels, height, width)
    down = torch.linspace(-2, 2, height)[None, :, None]
    across = torch.linspace(-1, 1, width)[None, None, :]
    slope = torch.linspace(-1, 1, channels)[:, None, None]
    flat = torch.stack([torch.zeros(shape), torch.full(shape, 1.5)])
    return [(down + slope * across)[None], _noise(1, shape, 0), flat, _noise(5, shape, 1)]


def _noise(batch: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def _eager(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        # A copy: some networks begin with an activation that works in place.
        return network(images.clone()).double()


def _write_checked(
    network: nn.Module, format: str, path: Path, header: dict[str, str], trials: list[_Trial]
) -> Exported:
    """Write with free height and width where that is right, else with a fixed size."""
    shape = trials[0][0].shape[2:]
    fixed = [trial for trial in trials if trial[0].shape[2:] == shape]
    if len(fixed) < len(trials) or format == "torchvision":  # which cannot refuse a size
        try:
            return _attempt(network, format, path, header, trials, None)
        except InputError:
            if format == "torchvision":
                raise
    return _attempt(network, format, path, header, fixed, (shape[0], shape[1]))


def _attempt(
    network: nn.Module,
    format: str,
    path: Path,
    header: dict[str, str],
    trials: list[_Trial],
    size: tuple[int, int] | None,
) -> Exported:
    method, run = WRITERS[format](network, path, header, size)
    max_abs, relative = _compare(run, trials)
    if not relative <= TOLERANCE:  # NaN is refused, too
        raise InputError(
            f"the {format} export of {header['architecture']} differs from PyTorch by "
            f"{relative:.1e} of the logits' standard deviation, over {TOLERANCE:.0e}: {INSTEAD}"
        )
    return Exported(
        paths=tuple(path.parents[1] / part.name for part in sorted(path.parent.iterdir())),
        format=format,
        method=method,
        max_abs=max_abs,
        relative=relative,
        batch_sizes=tuple(sorted({len(images) for images, _ in trials})),
        inputs=sum(len(images) for images, _ in trials),
        sizes=tuple(dict.fromkeys((x.shape[2], x.shape[3]) for x, _ in trials)),
        any_size=size is None,
    )


def _compare(run: Run, trials: list[_Trial]) -> tuple[float, float]:
    """Largest absolute difference, and the same in standard deviations of the eager logits."""
    differences, scale = [], torch.cat([logits for _, logits in trials]).std()
    for images, logits in trials:
        got = run(images.clone()).double()
        if got.shape != logits.shape:
            return float("inf"), float("inf")
        differences.append((got - logits).abs().max())
    worst = torch.stack(differences).max()  # a NaN stays one, unlike with Python's max
    return float(worst), float(worst / scale)


# The formats: each writes `path` and returns how, and what the file computes


def _example(header: dict[str, str]) -> Tensor:
    # torch.export would take a batch of 1 for a constant.
    return torch.zeros(2, *(int(n) for n in header["input_size"].split(",")))


def _onnx(
    network: nn.Module, path: Path, header: dict[str, str], size: tuple[int, int] | None
) -> tuple[str, Run]:
    axes = {0: "batch"} | ({2: "height", 3: "width"} if size is None else {})
    method, run = write_onnx(
        network, path, _example(header), header, outputs=["logits"], axes={"images": axes}
    )
    return method, lambda images: run(images)[0]


class _OneSize(nn.Module):
    """Refuses images of any other size than the one that was traced."""

    def __init__(self, network: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.network = network
        self.height = height
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        size = f"this file takes images of {self.height} x {self.width} pixels only"
        assert images.shape[2] == self.height and images.shape[3] == self.width, size
        return self.network(images)


def _torchscript(
    network: nn.Module, path: Path, header: dict[str, str], size: tuple[int, int] | None
) -> tuple[str, Run]:
    unfit = (RuntimeError, FrontendError, TypeError, ValueError, AttributeError)
    what = f"{header['architecture']} cannot be written as TorchScript: {INSTEAD}"
    with refusing(what, *unfit), quiet(), torch.no_grad():
        module: Any
        try:
            method, module = "script", torch.jit.script(network)
        except unfit:  # e.g. HRNet, which passes lists between its stages
            method = "trace"
            module = torch.jit.trace(network, _example(header), check_trace=False)
        if size is not None:
            module = torch.jit.script(_OneSize(module, *size))
        extra = {"facts.json": json.dumps(header, ensure_ascii=False)}
        torch.jit.save(module, str(path), _extra_files=extra)
        loaded = torch.jit.load(str(path))

    def run(images: Tensor) -> Tensor:
        with refusing(f"the TorchScript file fails: {INSTEAD}", RuntimeError, torch.jit.Error):
            with torch.no_grad():
                return loaded(images)

    return method, run


WRITERS = {"onnx": _onnx, "torchscript": _torchscript, "torchvision": torchvision_resnet.write}
FORMATS = tuple(WRITERS)
