"""Classifiers, detectors and segmenters on a backbone of `ssld`, `zoo` or timm.

- `transfer`, `ssld transfer`: fine-tune it as a classifier.
- `detection`, `ssld detection`: train Faster R-CNN, RetinaNet, FCOS, TTFNet, YOLOv3 or DETR on it.
- `segmentation`, `ssld segmentation`: train FCN, OCRNet or DeepLabv3+ on it.
- `ab`, `ssld ab`: which of two backbones is better at one of these, and how sure that is.
- `deploy`, `ssld predict` and `ssld export`: draw what a trained network finds, write it as ONNX.
- `backbone`: any network as a feature pyramid. `dense`: what detection and segmentation share.

`python -m downstream.detection` and the like do the same. See `docs/downstream.md`.
"""
