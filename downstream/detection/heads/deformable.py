"""Modulated deformable convolution (DCNv2) that starts as the plain convolution that it replaces.

Each point of the kernel looks at a learned distance from its usual place, and counts with a learned
factor. Both come from one more convolution that starts at zero: distances 0 and factor
2 * sigmoid(0) = 1, so that the result is the plain convolution's. The 2 is in the authors' code
(github.com/msracver/Deformable-ConvNets, DCNv2_op/example_symbol.py, MIT); without it, as in mmdet
and PaddleDetection, what a pretrained convolution gives would be halved.

Zhu et al., Deformable ConvNets v2 (arXiv 1811.11168), section 3.2, computed by
`torchvision.ops.deform_conv2d`. Which convolutions of a backbone become deformable: those of its
last stage, as `dcn_v2_stages` of PaddleDetection's YOLOv3-DCN recipes (ppdet/modeling/backbones/
resnet.py, Apache-2.0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from ssld.common.errors import InputError

FAR_PX = 1e6
"""Out of any map, where nothing is."""


class DeformableConv(nn.Module):
    """A 2-d convolution of one group whose points move and are weighted, [b, i, h, w] ->
    [b, o, h', w'] with the size that `nn.Conv2d` of the same arguments gives.

    Within autocast it computes in float32 (torchvision has no half-precision kernel on the CPU, and
    positions need the digits) and answers in the type that a plain convolution would.

    Attributes:
        weight: [o, i, k, k], uniform within 1/sqrt(i k k) at first, as in the neck of TTFNet
            (PaddleDetection, ppdet/modeling/necks/ttf_fpn.py).
        motion: the convolution that gives 2 k k distances in px of the map (y, x by point) and
            k k factors before the sigmoid; zero at first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        points = kernel_size * kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        bound = 1 / math.sqrt(in_channels * points)
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.motion = nn.Conv2d(in_channels, 3 * points, kernel_size, stride, padding, dilation)
        nn.init.zeros_(self.motion.weight)
        nn.init.zeros_(self.motion.get_parameter("bias"))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> DeformableConv:
        """A deformable convolution with the very parameters of `conv`, that gives what it gives.

        Raises:
            InputError: `conv` is a subclass, has groups, or is not square and zero-padded.
        """
        if not is_plain(conv):
            raise InputError(
                f"{conv} cannot become deformable; give an nn.Conv2d of one group whose kernel, "
                "stride, padding and dilation are square and whose padding is zeros"
            )
        size, stride, padding, dilation = (
            int(pair[0]) for pair in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        )
        new = cls(
            conv.in_channels,
            conv.out_channels,
            size,
            stride=stride,
            padding=padding,
            dilation=dilation,
        ).to(conv.weight)
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._convolve(x.float()).to(torch.get_autocast_dtype(device))
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        points = self.motion.out_channels // 3
        # [b, 2 k k, h, w] as (y, x) of each point, and [b, k k, h, w]
        distances, factors = self.motion(x).split((2 * points, points), dim=1)
        if not torch.jit.is_tracing():  # type: ignore[attr-defined]
            # torchvision reads memory that is not its own at a place that is NaN. The factor is NaN
            # as well then, so that what comes out still says that training has diverged.
            distances = distances.nan_to_num(nan=FAR_PX)
        return deform_conv2d(
            x,
            distances,
            self.weight,
            self.bias,
            (self.stride, self.stride),
            (self.padding, self.padding),
            (self.dilation, self.dilation),
            2 * factors.sigmoid(),
        )


def is_plain(conv: nn.Module) -> bool:
    """Whether `conv` is an `nn.Conv2d` itself with one group, zero padding and square arguments."""
    return (
        type(conv) is nn.Conv2d  # timm's subclasses pad in their own way
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and all(
            pair[0] == pair[1]
            for pair in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        )
    )


def deform_last_stage(backbone: nn.Module, stride: int) -> list[str]:
    """Make deformable, in place, each plain 3x3 convolution that computes maps of `stride`.

    These are stage 5 of a ResNet-D (the middle convolutions of `layer4`), whose first one also
    shrinks the map. The other parameters and their names stay; those of `motion` are new and train
    at the rate of the last stage (`Backbone.lr_scales`), between the full rate that PaddleDetection
    gives them and the tenth that the paper does (section 3.2) where the backbone's is tuned.

    Args:
        backbone: takes float [b, 3, h, w]; its modes and statistics are as before afterwards.
        stride: of its last map.

    Returns:
        The names of the replaced convolutions in `backbone`.

    Raises:
        InputError: there is none, as in networks of depthwise or grouped convolutions.
    """
    names = _plain_convs(backbone, stride)
    if not names:
        raise InputError(
            f"the last stage (stride {stride}) of this backbone has no 3x3 nn.Conv2d of one group "
            "that could become deformable; use a ResNet-D, or yolov3 instead of yolov3_dcn"
        )
    for name in names:
        parent, _, child = name.rpartition(".")
        conv = backbone.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        setattr(backbone.get_submodule(parent), child, DeformableConv.from_conv(conv))
    return names


def _plain_convs(backbone: nn.Module, stride: int) -> list[str]:
    """Names of the plain 3x3 convolutions whose output is `stride` times smaller than the image:
    found by running the network, as architectures name their stages in many ways."""
    plain: list[str] = []
    side = math.ceil(getattr(backbone, "input_size", 4 * stride) / stride) * stride
    handles = []
    for name, module in backbone.named_modules():
        if is_plain(module) and module.kernel_size == (3, 3):

            def note(_: nn.Module, __: object, out: Tensor, name: str = name) -> None:
                if out.shape[-1] * stride == side:
                    plain.append(name)

            handles.append(module.register_forward_hook(note))
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(next(backbone.parameters()).new_zeros(1, 3, side, side))
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    return plain
