"""What torch's tracing ONNX exporter lacks for detectors, for as long as one is written."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import TracerWarning
from torch.onnx import symbolic_helper, utils

from zoo.export.checked import TRACING_OPSET


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Within it `torch.onnx.export(..., dynamo=False, opset_version=TRACING_OPSET)` knows
    deformable convolution, splits are slices, and nothing is printed."""
    with _quiet(), _deformable(), _slices_for_splits():
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide that the tracing exporter is the older one, that a trace keeps to the size that it has
    seen, which is wanted, and the graph that is printed when it fails."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for category in (TracerWarning, DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield


@contextlib.contextmanager
def _deformable() -> Iterator[None]:
    """Teach the tracing exporter torchvision's deformable convolution, for as long as it is on."""
    name = "torchvision::deform_conv2d"
    utils.register_custom_op_symbolic(name, _deform_conv, TRACING_OPSET)
    try:
        yield
    finally:
        utils.unregister_custom_op_symbolic(name, TRACING_OPSET)


@contextlib.contextmanager
def _slices_for_splits() -> Iterator[None]:
    """Trace `torch.split` as slices. Where a backbone has a split, as Res2Net, the exporter writes
    the proposals of Faster R-CNN with one dimension too many."""
    split = torch.split

    def slices(x: Tensor, size: Any, dim: int = 0) -> Any:
        if not isinstance(size, int):
            return split(x, size, dim)
        starts = range(0, int(x.shape[dim]), size)
        return tuple(x.narrow(dim, i, min(size, int(x.shape[dim]) - i)) for i in starts)

    torch.split = slices
    try:
        yield
    finally:
        torch.split = split


@symbolic_helper.parse_args("v", "v", "v", "v", "v", "i", "i", "i", "i", "i", "i", "i", "i", "b")
def _deform_conv(
    g: Any,
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride_y: int,
    stride_x: int,
    pad_y: int,
    pad_x: int,
    dilation_y: int,
    dilation_x: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Any:
    """https://onnx.ai/onnx/operators/onnx__DeformConv.html; the order of offsets (y, x by point)
    and of the mask is torchvision's."""
    inputs = [x, weight, offset, bias] + ([mask] if use_mask else [])
    return g.op(
        "DeformConv",
        *inputs,
        strides_i=[stride_y, stride_x],
        pads_i=[pad_y, pad_x, pad_y, pad_x],
        dilations_i=[dilation_y, dilation_x],
        group_i=groups,
        offset_group_i=offset_groups,
    )
