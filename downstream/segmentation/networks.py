"""The segmenters by name, each a `downstream.segmentation.heads.segmenter.Segmenter`.

A new one is such a class, made of (backbone, number of classes), and a line in SEGMENTERS.

This file imports neither torch nor a network, so that `--help` is fast.
"""

from __future__ import annotations

from downstream.dense.networks import NetworkEntry, find

HEADS = "downstream.segmentation.heads"

# fcn and ocrnet take one map of stride 8 by dilation; what has no dilation (HRNet, which keeps its
# resolution anyway) gives its maps of strides 4, 8, 16 and 32.
SEGMENTERS = {
    "fcn": NetworkEntry(f"{HEADS}.fcn:FCN", (32,), 8, undilated=True),
    "ocrnet": NetworkEntry(f"{HEADS}.ocrnet:OCRNet", (32,), 8, undilated=True),
    "deeplabv3plus": NetworkEntry(
        f"{HEADS}.deeplab:DeepLabV3Plus",
        (4, 32),
        8,
        packages=("segmentation_models_pytorch",),
        pools_image=True,
    ),
    "nas_fpn": NetworkEntry(f"{HEADS}.nas_fpn:NASFPNSegmenter", (8, 16, 32)),
    "unet": NetworkEntry(f"{HEADS}.unet:UNet", packages=("segmentation_models_pytorch",)),
    "segformer": NetworkEntry(
        f"{HEADS}.segformer:SegFormer", packages=("segmentation_models_pytorch",)
    ),
}


def segmenter(name: str) -> NetworkEntry:
    """Raises InputError where there is none of that name."""
    return find(SEGMENTERS, "segmenter", name)
