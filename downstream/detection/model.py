"""A detector together with how it wants to see images: uint8 in; out come boxes, and of some
keypoints or masks in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from downstream.backbone.backbone import Backbone
from downstream.backbone.config import BackboneConfig
from downstream.dense.model import DenseModel, backbone_for, load, reading_view, require_sides
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.heads.detector import Detections
from downstream.detection.networks import detector, options
from ssld.common.errors import InputError
from ssld.common.settings_file import shortened


class DetectionModel(DenseModel):
    """Images in; losses out where targets are given, else what is found.

    Args:
        model: one of `downstream.detection.networks`.
        label_names: of the classes, by number.
        keypoints: what they are, of a network that finds them.
    """

    preset = "detection"

    def __init__(
        self, model: nn.Module, label_names: Sequence[str], keypoints: Keypoints | None = None
    ) -> None:
        super().__init__(model, label_names)
        self.keypoints = keypoints

    @property
    def stride(self) -> int:
        """Heights and widths are padded to a multiple of it."""
        return cast(int, self.model.stride)

    @property
    def queries(self) -> int | None:
        """The most boxes that it can tell of an image, None without such a limit."""
        return cast(int | None, getattr(self.model, "num_queries", None))

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        labeled: Tensor | None = None,
    ) -> Any:
        """
        Args:
            images: uint8 [b, h, w, 3].
            sizes: int64 [b, 2], the (h, w) of each that is picture; what is beyond is padding.
            targets: per image "boxes" float32 [n, 4] xyxy in px, "labels" int64 [n], and
                "weights" float32 [n] where images are mixed; "keypoints" and "masks" as of
                `downstream.detection.networks`.
            labeled: further images, uint8 [c, h, w, 3]; then what is below comes in a pair with
                `pooled` of them.

        Returns:
            {term: float32 [b]}, or per image {"boxes": float32 [k, 4] xyxy in px within the
            picture, "scores": float32 [k], "labels": int64 [k]}, best first, and of some
            "keypoints" or "masks".
        """
        pooled = None if labeled is None else self.pooled(labeled)
        output = self.model(self._padded(images, sizes), sizes, targets)
        return output if pooled is None else (output, pooled)

    def parts(self, images: Tensor, sizes: Tensor, found: list[Detections]) -> list[Tensor]:
        """Logits of keypoints or masks in boxes that are given, per image; see
        `downstream.detection.networks`.

        Args:
            images, sizes: as of `forward`.
            found: per image "boxes" in px of it, and "labels".
        """
        return cast(Any, self.model).parts(self._padded(images, sizes), sizes, found)

    def finish(self, found: Detections, parts: Tensor) -> Detections:
        """What was found in one image with the keypoints or masks of such logits."""
        return cast(Any, self.model).finish(found, parts)

    def _padded(self, images: Tensor, sizes: Tensor, multiple: int | None = None) -> Tensor:
        """uint8 [b, h, w, 3] -> float32 [b, 3, H, W], normalised, of multiples of the stride, or of
        `multiple`."""
        batch, height, width, _ = images.shape
        multiple = multiple or self.stride
        pad = (0, 0, 0, -width % multiple, 0, -height % multiple)
        images = nn.functional.pad(images, pad).permute(0, 3, 1, 2)
        rows = torch.arange(images.shape[2], device=images.device)
        columns = torch.arange(images.shape[3], device=images.device)
        inside = (rows[:, None] < sizes[:, 0].view(batch, 1, 1)) & (
            columns < sizes[:, 1].view(batch, 1, 1)
        )  # [b, h, w]
        # Padded after normalisation: 0 is the mean colour, as in torchvision's and detectron2's.
        return self.normalise(images.float()) * inside[:, None]

    def find(self, images: Tensor, sizes: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """What `forward` finds in one image, [1, h, w, 3], and the logits of its keypoints or masks
        (`parts` of `downstream/detection/networks.py`), None of a detector of boxes: both in one
        pass through the backbone."""
        if not hasattr(self.model, "parts"):
            return self(images, sizes)[0], None
        found, parts = cast(Any, self.model).find(self._padded(images, sizes), sizes)
        return found[0], parts[0]


def build(
    name: str,
    config: BackboneConfig,
    num_classes: int,
    args: Mapping[str, Any] | None = None,
    keypoints: Keypoints | None = None,
) -> nn.Module:
    """A detector on a backbone.

    Args:
        name: one of DETECTORS.
        config: what the backbone is.
        num_classes: of the boxes, without background.
        args: further arguments of the detector's class, for example {"anchor_sizes": [...]}.
        keypoints: of the data; only a detector of keypoints looks at them.

    Raises:
        InputError: an unknown name or argument, a value that the detector refuses, a detector of
            keypoints for data without, or a backbone that cannot be had or lacks the maps.
    """
    options(name, args)  # before weights are fetched
    _require_keypoints(name, keypoints)
    backbone = backbone_for(detector(name), config)
    return on_backbone(name, backbone, num_classes, args, keypoints)


def on_backbone(
    name: str,
    backbone: Backbone,
    num_classes: int,
    args: Mapping[str, Any] | None = None,
    keypoints: Keypoints | None = None,
) -> nn.Module:
    """The detector on a backbone that is there, with the maps that it wants.

    Raises:
        InputError: as of `build`.
    """
    given, entry = options(name, args), detector(name)
    if num_classes < 1:
        raise InputError(f"{name} for {num_classes} classes: give data with at least one")
    known = _require_keypoints(name, keypoints)
    sizes = (num_classes, len(known.names)) if known else (num_classes,)
    return entry.load(name)(backbone, *sizes, **given, **entry.fixed)


def _require_keypoints(name: str, keypoints: Keypoints | None) -> Keypoints | None:
    """Those that the detector is for, None where it is for boxes or masks."""
    if detector(name).finds != "keypoints":
        return None
    if keypoints is None or not keypoints.names:
        raise InputError(
            f"{name} finds keypoints and the data has none: give COCO annotations whose category "
            "names `keypoints`, or another detector"
        )
    return keypoints


def views_of(content: dict[str, Any]) -> tuple[BoxAugmentConfig, BoxTestConfig]:
    """How an exported detector sees images. Before it had test settings, images were seen once."""
    view = dict(content["view"])
    test = BoxTestConfig(**view.pop("test", {}))
    return BoxAugmentConfig(**view), test


def open_detector(folder: Path, content: dict[str, Any]) -> DetectionModel:
    """The detector that an exported folder holds, in eval mode.

    Args:
        folder, content: as of `downstream.dense.model.read_description`.

    Raises:
        InputError: a damaged description, weights that cannot be read or do not fit.
    """
    with reading_view(folder):
        augment, test = views_of(content)
        require_sides([augment.test_size, *augment.sizes, augment.longest or 1])
        if type(test.flip) is not bool or test.merge not in ("vote", "nms", "soft_nms"):
            raise ValueError(f"test is {test!r}")
        keypoints = _read_keypoints(content.get("keypoints"))
    head = content["head"]
    model = load(
        folder, content, lambda x, n: on_backbone(head["name"], x, n, head["args"], keypoints)
    )
    return DetectionModel(model, content["class_names"], keypoints).eval()


def _read_keypoints(content: Any) -> Keypoints | None:
    """Raises TypeError, ValueError or KeyError where they are not as `save` writes them."""
    if content is None:
        return None
    names = content["names"]
    if not isinstance(names, list) or not names or not all(isinstance(x, str) for x in names):
        raise TypeError(f"keypoints.names is {shortened(names)}")
    pairs = {}
    for key in ("flip_pairs", "skeleton"):
        pairs[key] = tuple((a, b) for a, b in content[key])
        numbers = [x for pair in pairs[key] for x in pair]
        if any(type(x) is not int or not 0 <= x < len(names) for x in numbers):
            raise ValueError(f"keypoints.{key} is not of pairs of {len(names)} keypoints")
    swapped = [x for pair in pairs["flip_pairs"] for x in pair]
    if len(set(swapped)) < len(swapped):
        raise ValueError("keypoints.flip_pairs names a keypoint twice")
    return Keypoints(tuple(names), **pairs)
