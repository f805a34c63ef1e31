"""`ssld predict RUN IMAGES --out DIR`: what a trained network says of images, drawn on them.

DIR/images/NAME.jpg     the image with its boxes, its mask or its best classes (PNG if huge)
DIR/masks/NAME.png      of a segmenter: grey values, the ids that its training masks had, of 16 bits
                        where one is above 255
DIR/classes.json        of a segmenter: these ids, names and colours
DIR/predictions.jsonl   one line an image: its name, the file in DIR/images, and boxes (xyxy px; of
                        some detectors with keypoints, x, y px and score of each, or a mask, COCO's
                        compressed run lengths; coordinates are continuous: the centre of the first
                        pixel is .5), shares of classes, or best classes
DIR/unreadable.jsonl    images that could not be read

NAME is the image's, folders included, without its ending: x/a.png is drawn as x/a.jpg. Where
another image has that name already, it keeps its ending: x/a.png.jpg.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from downstream.dense.config import ViewsConfig
from downstream.dense.drawing import (
    draw_boxes,
    draw_instances,
    draw_keypoints,
    draw_lines,
    draw_mask,
    legend_of,
    with_legend,
)
from downstream.dense.model import FOLDER, read_description, run_folder
from downstream.dense.networks import require_packages
from downstream.deploy.config import PredictConfig
from downstream.detection.inference import predict as find
from downstream.detection.model import open_detector, views_of
from downstream.segmentation.model import open_segmenter, test_of
from ssld.common.errors import InputError, one_line
from ssld.common.files import read_object
from ssld.common.streams import is_terminal
from ssld.data.decode import Unreadable, decode
from ssld.data.folder import EXTENSIONS
from ssld.data.sources import Source, open_source
from ssld.data.transforms import eval_view
from ssld.models.opening import open_network

BEST = 3
"""Classes that are named for an image."""
JPEG_QUALITY = 90
JPEG_SIDE = 65_500
"""Most px that libjpeg writes; larger pictures are PNG."""
SEEN_AS_IN_ITS_RUN = ViewsConfig()
NAME_BYTES = 200
"""Of a name's end that are kept where it is longer; Linux allows 255."""


@dataclass(frozen=True)
class Prediction:
    """Of one image."""

    drawn: np.ndarray
    """uint8 [h, w, 3]."""
    line: dict[str, Any]
    mask: np.ndarray | None = None
    """uint8 or uint16 [h, w], of a segmenter."""


Predictor = Callable[[np.ndarray, bytes], Prediction]
"""(uint8 [h, w, 3], the encoded image) -> what the network says of it."""
Row = dict[str, Any]
"""Id, name and colour of a class, as `downstream.segmentation.data.class_table` reads it."""


def predict(config: PredictConfig) -> None:
    """Draw every image.

    Raises:
        InputError: no such network or images, a folder in use, too many unreadable images.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"out {out} is not empty: give another folder")
    source = open_source(config.images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor, classes = _open(config.run, config.test, config.score, device)
    writer = _Writer(config, source)
    if classes:
        writer.write_text("classes.json", json.dumps({"classes": classes}, indent=1) + "\n")
    for i in tqdm(range(len(source)), unit="img", disable=not is_terminal(sys.stderr)):
        try:
            data = source.read(i)
            pixels = decode(data)
        except (OSError, Unreadable) as error:
            writer.unreadable(i, error)
            continue
        with torch.inference_mode():
            writer.write(i, predictor(pixels, data))
    writer.finish()


class _Writer:
    """Writes each image and its line as it comes, so that a prediction that dies late has both of
    all images before."""

    def __init__(self, config: PredictConfig, source: Source) -> None:
        self.out, self.source = Path(config.out), source
        self.limit, self.least = config.max_unreadable, config.score
        self.drawn = self.bad = 0
        self.names: set[str] = set()
        self.below: list[float] = []
        """Best score of each image that has none of `least`."""
        with self._writing(self.out):
            (self.out / "images").mkdir(parents=True, exist_ok=True)

    def write(self, i: int, prediction: Prediction) -> None:
        name = self.source.sample_id(i)
        file = self._file(name)
        kind = "jpg" if max(prediction.drawn.shape[:2]) <= JPEG_SIDE else "png"
        drawn = f"{file}.{kind}"
        self._save(Image.fromarray(prediction.drawn), self.out / "images" / drawn)
        if prediction.mask is not None:
            self._save(Image.fromarray(prediction.mask), self.out / "masks" / f"{file}.png")
        self._append("predictions", {"image": name, "file": drawn, **prediction.line})
        self.drawn += 1
        if "boxes" in prediction.line:
            best = max((one["score"] for one in prediction.line["boxes"]), default=0.0)
            self.below += [best] * (best < self.least)

    def write_text(self, name: str, text: str) -> None:
        """A file beside the images."""
        with self._writing(self.out / name):
            (self.out / name).write_text(text, encoding="utf-8")

    def _file(self, name: str) -> str:
        """A relative path, without ending, that no other image has, for a sample id, which may be
        anything: absolute, too long, `../x`."""
        parts = [part for part in name.replace("\0", "").split("/") if part not in ("", ".", "..")]
        *folders, last = parts or ["image"]
        stem, ending = os.path.splitext(last)
        usual = [stem] if ending.lower() in EXTENSIONS else []
        names = chain(usual, [last], (f"{last}~{number}" for number in count(2)))
        files = ("/".join(map(_short, [*folders, own])) for own in names)
        file = next(file for file in files if file not in self.names)
        self.names.add(file)
        return file

    def _save(self, image: Any, path: Path) -> None:
        buffer = io.BytesIO()
        kind = {".jpg": ("JPEG", {"quality": JPEG_QUALITY}), ".png": ("PNG", {})}[path.suffix]
        image.save(buffer, kind[0], **kind[1])
        with self._writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        path = self.out / f"{name}.jsonl"
        with self._writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror or error}) after {self.drawn} images, "
                f"whose pictures and lines are in {self.out}; free space or mend the folder, then "
                "give another --out"
            ) from error

    def unreadable(self, i: int, error: Exception) -> None:
        reason, where = one_line(error), self.source.location(i)
        print(f"unreadable, left out: {where} ({reason})", file=sys.stderr)
        entry = {"sample_id": self.source.sample_id(i), "location": where, "reason": reason}
        self._append("unreadable", entry)
        self.bad += 1
        if self.bad > self.limit * len(self.source):
            self.finish()
            raise InputError(
                f"{self.source.path}: {self.bad} of {len(self.source)} images cannot be read, "
                f"more than max_unreadable allows ({self.limit:.1%}), the last one {where} "
                f"({reason}); mend the source or raise the limit"
            )

    def finish(self) -> None:
        unreadable = f", {self.bad} could not be read" if self.bad else ""
        print(f"{self.drawn} images drawn in {self.out / 'images'}{unreadable}")
        if self.below:
            print(
                f"{len(self.below)} of them without a box, as none has a score of {self.least:g}, "
                f"the best there has {max(self.below):.2f}: --score draws others"
            )


def _short(part: str) -> str:
    return os.fsdecode(os.fsencode(part)[-NAME_BYTES:])


def load(
    run: str | Path, *, test: ViewsConfig = SEEN_AS_IN_ITS_RUN
) -> Callable[[str | Path], dict[str, Any]]:
    """The network of a run as a function of an image file, for scripts and notebooks.

        detector = load("runs/detector")
        detector("image.jpg")["boxes"][0]   # {"class": "car", "score": 0.93, "box": [...]}

    Args:
        run: as of `ssld predict`; on the GPU if there is one.
        test: how images are seen, where that is to differ from the run.

    Returns:
        a function that returns what `ssld predict` writes of an image, best first: `boxes` with
        class, score and box (xyxy px, float), `classes` with their probabilities, or `shares` of
        classes; of a segmenter also `mask`, uint8 or uint16 [h, w], ids of the training masks. It
        raises InputError where the file is no image.

    Raises:
        InputError: no such network.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor, _ = _open(str(run), test, 1.0, device)

    def found(image: str | Path) -> dict[str, Any]:
        try:
            data = Path(image).read_bytes()
            pixels = decode(data)
        except (OSError, Unreadable) as error:
            raise InputError(f"{image} cannot be read: {one_line(error)}") from error
        with torch.inference_mode():
            prediction = predictor(pixels, data)
        mask = {} if prediction.mask is None else {"mask": prediction.mask}
        return {**prediction.line, **mask}

    return found


def _open(
    given: str, test: ViewsConfig, score: float, device: torch.device
) -> tuple[Predictor, list[Row]]:
    """The run's network, whatever it is, and what a segmenter's masks mean."""
    run = run_folder(given)
    config_file = run / "config.json"
    classifier = (run / "student").is_dir() or (
        not (run / FOLDER).is_dir()
        and config_file.is_file()
        and "architecture" in read_object(config_file, "give another copy of it")
    )
    if classifier:
        if test != SEEN_AS_IN_ITS_RUN:
            raise InputError(
                f"{given} is a classifier, which sees an image once: leave out "
                "what begins with test."
            )
        return _classifier(given, device), []
    folder, content = read_description(given)
    if content["task"] == "detection":
        return _detector(folder, content, test, device, score), []
    return _segmenter(folder, content, test, device)


def _detector(
    folder: Path,
    content: dict[str, Any],
    views: ViewsConfig,
    device: torch.device,
    least: float,
) -> Predictor:
    model = open_detector(folder, content).to(device)
    augment, test = views_of(content)
    test, names = views.over(test), content["class_names"]
    legend = legend_of(names)

    def predictor(pixels: np.ndarray, data: bytes) -> Prediction:
        image = torch.from_numpy(pixels).to(device)
        detections = find(model, image, augment, test)
        boxes = detections["boxes"].cpu().numpy()
        scores, labels = detections["scores"].tolist(), detections["labels"].tolist()
        sure, drawn = sum(score >= least for score in scores), pixels  # best first
        line = [
            {"class": names[label], "score": score, "box": box}
            for box, score, label in zip(boxes.tolist(), scores, labels, strict=True)
        ]
        if "masks" in detections:
            masks = _pasted(detections, pixels.shape[:2])
            drawn = draw_instances(drawn, masks[:sure], labels[:sure])
            for one, mask in zip(line, masks, strict=True):
                one["mask"] = {**mask, "counts": mask["counts"].decode()}
        drawn = draw_boxes(drawn, boxes[:sure], labels[:sure], names, scores[:sure])
        if "keypoints" in detections and model.keypoints is not None:
            points = detections["keypoints"].cpu().numpy()
            drawn = draw_keypoints(drawn, points[:sure], model.keypoints, filled=0.0)
            for one, of_object in zip(line, points.tolist(), strict=True):
                one["keypoints"] = of_object
        drawn = with_legend(drawn, [legend[i] for i in sorted(set(labels[:sure]))])
        return Prediction(drawn, {"boxes": line})

    return predictor


def _pasted(detections: dict[str, torch.Tensor], size: tuple[int, int]) -> list[dict[str, Any]]:
    """COCO's run lengths."""
    require_packages("drawing masks", "faster_coco_eval")
    from downstream.detection.pasting import paste

    return paste(detections["masks"], detections["boxes"], size)


def _segmenter(
    folder: Path, content: dict[str, Any], views: ViewsConfig, device: torch.device
) -> tuple[Predictor, list[Row]]:
    model = open_segmenter(folder, content).to(device)
    palette, names = content["view"]["palette"], content["class_names"]
    test = vars(views.over(test_of(content)))
    if len(palette) != len(names):
        raise InputError(
            f"{folder / 'config.json'} is damaged ({len(names)} classes have {len(palette)} "
            "colours); export the model again"
        )
    legend, colours = list(zip(names, palette, strict=True)), np.array(palette, np.uint8)
    ids = _ids_of(content)

    def predictor(pixels: np.ndarray, data: bytes) -> Prediction:
        mask = model.segment(torch.from_numpy(pixels).to(device), **test).cpu().numpy()
        share = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
        line = {name: round(float(x), 6) for name, x in zip(names, share, strict=True) if x > 0}
        drawn = draw_mask(pixels, mask, colours)
        drawn = with_legend(drawn, [legend[i] for i in np.flatnonzero(share)])
        return Prediction(drawn, {"shares": line}, ids[mask])

    rows = zip(ids.tolist(), names, palette, strict=True)
    return predictor, [{"id": i, "name": name, "colour": colour} for i, name, colour in rows]


def _ids_of(content: dict[str, Any]) -> np.ndarray:
    """Of masks that are written, by class number: those of the training masks where PNG can have
    them. uint8 or uint16 [classes]."""
    numbers = list(range(len(content["class_names"])))
    ids = content["view"].get("ids") or numbers
    if min(ids) < 0 or max(ids) >= 2**16:
        print("the ids of the training masks are no 16 bits: masks have class numbers, from 0 on")
        ids = numbers
    return np.array(ids, np.uint8 if max(ids) < 2**8 else np.uint16)


def _classifier(run: str, device: torch.device) -> Predictor:
    network = open_network("run", arch=None, checkpoint=run).to(device).eval()
    view = eval_view(network)
    names = network.label_names or list(map(str, range(network.num_classes)))

    def predictor(pixels: np.ndarray, data: bytes) -> Prediction:
        probabilities = network(view(data)[None].to(device))[0].softmax(-1).cpu()
        best = probabilities.topk(min(BEST, len(names)))
        classes = [names[i] for i in best.indices.tolist()]
        line = dict(zip(classes, best.values.tolist(), strict=True))
        lines = [f"{name} {share:.1%}" for name, share in line.items()]
        return Prediction(draw_lines(pixels, lines), {"classes": line})

    return predictor
