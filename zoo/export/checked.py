"""What every export shares: a file gets its name only after it was loaded back and compared with
the network that it came from, and what was there before stays until then."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.onnx.errors import OnnxExporterError, OnnxExporterWarning

from zoo.errors import InputError, one_line

INSTEAD = "nothing was written, use another format, or the network with PyTorch"
TRACING_OPSET = 20
"""The newest of torch's tracing exporter; DeformConv came with 19."""

Run = Callable[[Tensor], Sequence[Tensor]]
"""What an ONNX file computes: float32 [batch, channels, height, width] -> its outputs."""


def require_packages(*packages: str) -> None:
    """
    Raises:
        InputError: one cannot be imported.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            what = f"the format onnx needs {package}: pip install 'ssld[onnx]'"
            raise InputError(what) from error


@contextlib.contextmanager
def placed(out: Path) -> Iterator[Path]:
    """A path of the same name in a folder of its own beside `out`. What is at it in the end, and
    beside it, replaces what was at `out`; after an error nothing does.

    Raises:
        InputError: it cannot be written.
    """
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary / out.name
        written = sorted(temporary.iterdir(), reverse=True)  # the one that names the others last
        if out.is_dir():  # which cannot be renamed over
            out.rename(temporary / f"{out.name}.replaced")
        for path in written:
            os.replace(path, out.with_name(path.name))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{out} cannot be written ({one_line(error)}); free space or give another path"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def refusing(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Make one sentence of these errors: `what`, and the first line of their own message."""
    try:
        yield
    except errors as error:
        lines = (line.strip() for line in str(error).splitlines())
        reason = f"{type(error).__name__}: {next(filter(None, lines), '')}"[:200]
        raise InputError(f"{what} ({reason})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what is no news: torch.jit is deprecated (who asks for it knows), a trace keeps to the
    sizes it has seen (the comparison shows whether it does), deprecations within the exporter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        for category in (TracerWarning, OnnxExporterWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        yield


def facts(model: nn.Module) -> dict[str, str]:
    """What a user of the file must know, as strings: architecture, num_classes, input_size, mean,
    std (comma-separated), interpolation, crop_pct, crop_mode, and label_names (JSON) where known.

    Raises:
        InputError: the model does not say input_size, mean and std.
    """
    config: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    missing = [key for key in ("input_size", "mean", "std") if not config.get(key)]
    if missing:
        raise InputError(
            f"the network's pretrained_cfg has no {', '.join(missing)}: make it with "
            "timm.create_model, or give a folder that `ssld` exported"
        )
    values = {
        "architecture": config.get("architecture") or type(model).__name__.lower(),
        "num_classes": getattr(model, "num_classes", None) or config.get("num_classes"),
        **{key: config.get(key) for key in ("interpolation", "crop_pct", "crop_mode")},
        **{key: ",".join(map(str, config[key])) for key in ("input_size", "mean", "std")},
    }
    if config.get("label_names"):
        values["label_names"] = json.dumps(list(config["label_names"]), ensure_ascii=False)
    return {key: str(value) for key, value in sorted(values.items()) if value is not None}


def write_onnx(
    network: nn.Module,
    path: Path,
    example: Tensor,
    header: Mapping[str, str],
    *,
    outputs: Sequence[str],
    axes: Mapping[str, dict[int, str]],
    tracing: AbstractContextManager[None] | None = None,
) -> tuple[str, Run]:
    """Write an ONNX file with one input, `images`; onnx checks it and onnxruntime loads it.

    Args:
        example: float32 images that the network takes; at least two where the batch is free, as
            torch.export would take one for a constant.
        header: goes into the file's metadata.
        outputs: names of what the network returns.
        axes: {input or output: {dimension: its name}} of those that are free.
        tracing: write with torch's older, tracing exporter, inside of this; by default with
            torch.export ("dynamo"), torch's default, and the opset that it chooses.

    Returns:
        Exporter and opset in words, and what the file computes.

    Raises:
        InputError: the network cannot be expressed, or onnxruntime cannot load or run the file.
    """
    import onnx  # of an extra, as onnxruntime below

    kinds = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    write, how = (_dynamo, "dynamo") if tracing is None else (_traced, "trace")
    with (
        refusing(
            f"{header['architecture']} cannot be written as ONNX: {INSTEAD}",
            *(OnnxExporterError, RuntimeError, *kinds),
        ),
        quiet(),
        tracing or contextlib.nullcontext(),
        torch.no_grad(),
    ):
        names = {"input_names": ["images"], "output_names": list(outputs)}
        opset = write(network, path, example, header, axes, names)
        onnx.checker.check_model(str(path), full_check=True)
    return f"{how}, opset {opset}", _loaded(path, outputs)


def _dynamo(
    network: nn.Module, path: Path, example: Tensor, header: Mapping, axes: Mapping, names: dict
) -> int:
    shapes = (axes["images"],)
    program = torch.onnx.export(
        network, (example,), dynamo=True, verbose=False, dynamic_shapes=shapes, **names
    )
    assert program is not None
    program.model.metadata_props.update(header)
    # Stack traces, which name this machine's files.
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(path)  # makes a second file above 2 GB, which is protobuf's limit
    return program.model.opset_imports[""]


def _traced(
    network: nn.Module, path: Path, example: Tensor, header: Mapping, axes: Mapping, names: dict
) -> int:
    import onnx

    options = {"dynamo": False, "opset_version": TRACING_OPSET, "dynamic_axes": axes}
    torch.onnx.export(network, (example,), str(path), **options, **names)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(header))
    onnx.save(model, str(path))
    return TRACING_OPSET


def _loaded(path: Path, outputs: Sequence[str]) -> Run:
    import onnxruntime

    # Its errors have no common class but Exception.
    state = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    errors = tuple(kind for kind in state if isinstance(kind, type) and issubclass(kind, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what matters is raised
    with refusing(f"onnxruntime cannot load the file: {INSTEAD}", *errors):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        with refusing(f"onnxruntime cannot run the file: {INSTEAD}", *errors):
            arrays = session.run(list(outputs), {"images": images.numpy()})
        return [torch.as_tensor(array) for array in arrays]

    return run
