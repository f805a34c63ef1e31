"""A timm classifier together with how it wants to see images.

A `Classifier` takes uint8 views and resizes and normalises them on the device for itself, so that a
wrong normalisation between teacher and student cannot be expressed. Whatever arrives is
`[b, h, w, 3]` uint8; what leaves is `[b, classes]` logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssld.common.errors import InputError
from ssld.models.class_titles import class_titles
from ssld.models.image_size import size_advice

LARGEST = 1e30
"""Of a mean, and of a deviation's inverse: what is computed from pixels stays finite in float32."""


class TimmModel(nn.Module):
    """What timm's classifiers have beyond a module: for type checkers, never made."""

    num_classes: int
    head_hidden_size: int
    pretrained_cfg: dict[str, Any]

    def forward_features(self, x: Tensor) -> Tensor:
        """[b, 3, h, w] -> the last feature map or tokens."""
        ...

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """-> [b, classes] logits, or the pooled [b, d] before them."""
        ...

    def reset_classifier(self, num_classes: int) -> None: ...


class ImageModel(nn.Module):
    """A model and how it wants pixels normalised; `model` is what is saved and exported.

    Args:
        mean, std: normalisation of pixel values in [0, 1].
        label_names: of its classes, in order, where they are known.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        label_names: Sequence[str] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.mean = tuple(float(x) for x in mean)
        self.std = tuple(float(x) for x in std)
        numbers = all(abs(x) < LARGEST for x in self.mean + self.std)  # NaN is not
        if not numbers or min(self.std) <= 1 / LARGEST:
            raise InputError(
                f"normalisation by mean {self.mean} and std {self.std} makes no numbers of pixels: "
                "give finite ones, and std above 0"
            )
        self.label_names = list(label_names) if label_names else None
        scale, shift = 1 / (255 * torch.tensor(self.std)), -torch.tensor(self.mean)
        self.register_buffer("_scale", scale, persistent=False)  # [3]
        self.register_buffer("_shift", shift / torch.tensor(self.std), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """[b, 3, h, w] in 0..255 -> float32, of zero mean and unit deviation where trained."""
        return pixels * self._scale.view(1, 3, 1, 1) + self._shift.view(1, 3, 1, 1)

    def lr_scales(self) -> dict[str, float]:
        """{parameter name: factor on its learning rate}; 1 where it is not named."""
        return {}


class Classifier(ImageModel):
    """Images in, logits out.

    Args:
        model: a timm classifier (`TimmModel`); its `pretrained_cfg` supplies what is not given.
        input_size: side in px of the square that the model sees.
        mean, std: normalisation of pixel values in [0, 1].
    """

    model: TimmModel

    def __init__(
        self,
        model: nn.Module,
        *,
        input_size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        cfg = dict(cast(TimmModel, model).pretrained_cfg or {})
        super().__init__(
            model,
            mean=mean or cfg.get("mean", IMAGENET_DEFAULT_MEAN),
            std=std or cfg.get("std", IMAGENET_DEFAULT_STD),
            label_names=cfg.get("label_names"),
        )
        self.input_size = int(input_size or cfg.get("input_size", (3, 224, 224))[-1])
        self.crop_pct = float(cfg.get("crop_pct") or 0.875)
        self.crop_mode = str(cfg.get("crop_mode") or "center")
        self.interpolation = str(cfg.get("interpolation") or "bilinear")
        self._trained: list[str] | None = None
        self.of_imagenet = False
        """Whether its classifier is one that timm publishes for ImageNet."""

    @property
    def class_titles(self) -> list[str] | None:
        """What pages call its classes; see `ssld/models/class_titles.py`."""
        return class_titles(self.label_names, self.num_classes, of_imagenet=self.of_imagenet)

    @property
    def num_classes(self) -> int:
        return int(self.model.num_classes)

    @property
    def feature_size(self) -> int:
        """d of `features`: what a projection of them takes."""
        return int(self.model.head_hidden_size)

    @property
    def architecture(self) -> str | None:
        """timm's name of the model."""
        return self.model.pretrained_cfg.get("architecture")

    def require_classes(self, role: str) -> None:
        """Raises InputError where the model has no classifier: timm's features alone."""
        if not self.num_classes:
            raise InputError(
                f"{role} has no classifier (num_classes is 0): it makes features, not predictions; "
                f"take weights with a classifier, train one on it first (`ssld supervised`), or "
                f"distil its features alone (`ssld distill` with loss.weight 0, features.weight 1)"
            )

    def freeze_but(self, names: Sequence[str]) -> None:
        """Train nothing but these modules of the model; the others stay in eval mode for good,
        batch statistics and dropout included."""
        self._trained = list(names)
        self.requires_grad_(False)
        for name in names:
            self.model.get_submodule(name).requires_grad_(True)
        self.train(self.training)

    @property
    def frozen_on_purpose(self) -> bool:
        """Whether `freeze_but` was called."""
        return self._trained is not None

    def train(self, mode: bool = True) -> Classifier:
        if self._trained is None:
            return super().train(mode)
        super().train(False)
        for name in self._trained:  # by name: synchronised batch norm replaces modules
            self.model.get_submodule(name).train(mode)
        return self

    def preprocess(self, images: Tensor) -> Tensor:
        """[b, h, w, 3] uint8 -> [b, 3, input_size, input_size] float32, normalised.

        Another size than `input_size` is resized bilinearly, with a low-pass filter when shrinking.
        """
        x = images.permute(0, 3, 1, 2).float()  # channels last in memory
        if x.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return self.normalise(x)

    def forward(
        self, images: Tensor, with_features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[b, h, w, 3] uint8 -> [b, classes] logits.

        Args:
            with_features: return (logits, features [b, feature_size]) of one forward pass, as
                `features` has them. It is an argument of `forward` so that a loss on features
                trains under DistributedDataParallel, whose hooks hang on this call.
        """
        if not with_features:
            return self.model(self.preprocess(images))
        x = self.model.forward_features(self.preprocess(images))
        features = self.model.forward_head(x, pre_logits=True)
        if not self.num_classes:
            return features[:, :0], features
        return self.model.forward_head(x), features

    def features(self, images: Tensor) -> Tensor:
        """[b, h, w, 3] uint8 -> [b, feature_size]: pooled, what the last layer makes logits of."""
        x = self.model.forward_features(self.preprocess(images))
        return self.model.forward_head(x, pre_logits=True)

    def sha256(self) -> str:
        """Digest of all weights: names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def cost(self) -> tuple[float, float]:
        """(parameters in millions, multiply-adds per image in millions).

        Raises:
            InputError: the model does not run on images of `input_size`.
        """
        parameters = sum(p.numel() for p in self.model.parameters())
        device = next(self.model.parameters()).device
        images = torch.zeros(2, 3, self.input_size, self.input_size, device=device)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                logits = self.model(images)  # two: batch statistics need more than one value
            classes = int(getattr(self.model, "num_classes", 0))
            if classes and tuple(logits.shape) != (len(images), classes):
                raise ValueError(f"its answer is {tuple(logits.shape)}")
        except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            args = getattr(self.model, "_model_args", {})
            advice = size_advice(self.architecture or "", args, (self.input_size, self.input_size))
            raise InputError(
                f"{self.architecture} does not run on images of {self.input_size} px ({error}); "
                f"set another size{advice or ', or other `args`'}"
            ) from error
        finally:
            self.model.train(training)
        return parameters / 1e6, counter.get_total_flops() / 2 / len(images) / 1e6


def as_images_lie(model: nn.Module) -> None:
    """Write the strides of weights that lie alike in either memory format, 1 x 1 and depthwise
    ones, as channels last; no value moves.

    Images come with channels last in memory (`Classifier.preprocess`), and so do the gradients
    of what convolves them. A weight of size 1 in some dimension keeps such strides, while
    DistributedDataParallel lays out its buckets by the weight's own: it would warn that they do not
    match, and copy every gradient.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or weight is None:
            continue
        if weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
            _, i, h, w = weight.shape
            weight.data = weight.data.as_strided(weight.shape, (i * h * w, 1, w * i, i))
