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
from dataclasses import dataclass, replace
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
from ssld.common.streams import bar_output
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
NAME_BYTES = 200
"""Of a name's end that are kept where it is longer; Linux allows 255."""


@dataclass(frozen=True)
class Prediction:
    """Of one image."""

    drawn: np.ndarray
    """uint8 [h, w, 3]."""
    line: dict[str, Any]
    """Of `predictions.jsonl`, without the file: the names of boxes, shares or classes are there."""
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
    if not config.out:
        raise InputError("give a run, images and --out: ssld predict RUN IMAGES --out DIR")
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"out {out} is not empty: give another folder")
    source = open_source(config.images)
    predictor, classes = _open(config)
    writer = _Writer(config, source)
    if classes:
        writer.write_text("classes.json", json.dumps({"classes": classes}, indent=1) + "\n")
    seen = _seen(source, predictor)
    for i, one in enumerate(tqdm(seen, total=len(source), unit="img", **bar_output(lines=False))):
        if isinstance(one, Prediction):
            writer.write(i, one)
        else:
            writer.unreadable(i, one)
    writer.finish()


def predictions(config: PredictConfig) -> Iterator[Prediction]:
    """What the network says of every image that can be read, one after the other as they are asked
    for; nothing is written. Of the others a line on stderr says why.

    Raises:
        InputError: as of `predict`; too many unreadable images when it comes to that.
    """
    if config.out:
        raise InputError(
            f"out is {config.out}, but nothing is written here: leave it out, or use `ssld predict`"
        )
    source = open_source(config.images)
    predictor, _ = _open(config)

    def each() -> Iterator[Prediction]:
        bad = 0
        for i, one in enumerate(_seen(source, predictor)):
            if isinstance(one, Prediction):
                yield replace(one, line={"image": source.sample_id(i), **one.line})
            else:
                bad += 1
                _say(source, i, one)
                _require_readable(config, source, i, one, bad)

    return each()


def _seen(source: Source, predictor: Predictor) -> Iterator[Prediction | OSError | Unreadable]:
    """Of each image what the network says of it, or why it cannot be read."""
    for i in range(len(source)):
        try:
            data = source.read(i)
            pixels = decode(data)
        except (OSError, Unreadable) as error:
            yield error
            continue
        with torch.inference_mode():
            prediction = predictor(pixels, data)
        yield prediction


def _say(source: Source, i: int, error: Exception) -> None:
    reason = one_line(error)
    print(f"unreadable, left out: {source.location(i)} ({reason})", file=sys.stderr)


def _require_readable(
    config: PredictConfig, source: Source, i: int, error: Exception, bad: int
) -> None:
    """Raise an InputError where the last one of `bad` unreadable images, `i`, is one too many."""
    if bad > config.max_unreadable * len(source):
        raise InputError(
            f"{source.path}: {bad} of {len(source)} images cannot be read, more than "
            f"max_unreadable allows ({config.max_unreadable:.1%}), the last one "
            f"{source.location(i)} ({one_line(error)}); mend the source or raise the limit"
        )


class _Writer:
    """Writes each image and its line as it comes, so that a prediction that dies late has both of
    all images before."""

    def __init__(self, config: PredictConfig, source: Source) -> None:
        self.out, self.source, self.config = Path(config.out), source, config
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
            self.below += [best] * (best < self.config.score)

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
        _say(self.source, i, error)
        name, where = self.source.sample_id(i), self.source.location(i)
        self._append(
            "unreadable", {"sample_id": name, "location": where, "reason": one_line(error)}
        )
        self.bad += 1
        try:
            _require_readable(self.config, self.source, i, error, self.bad)
        except InputError:
            self.finish()
            raise

    def finish(self) -> None:
        unreadable = f", {self.bad} could not be read" if self.bad else ""
        print(f"{self.drawn} images drawn in {self.out / 'images'}{unreadable}")
        if self.below:
            print(
                f"{len(self.below)} of them without a box, as none has a score of "
                f"{self.config.score:g}, the best there has {max(self.below):.2f}: --score draws "
                "others"
            )


def _short(part: str) -> str:
    return os.fsdecode(os.fsencode(part)[-NAME_BYTES:])


def _open(config: PredictConfig) -> tuple[Predictor, list[Row]]:
    """The run's network, whatever it is, and what a segmenter's masks mean."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given, test = config.run, config.test
    run = run_folder(given)
    config_file = run / "config.json"
    classifier = (run / "student").is_dir() or (
        not (run / FOLDER).is_dir()
        and config_file.is_file()
        and "architecture" in read_object(config_file, "give another copy of it")
    )
    if classifier:
        if test != ViewsConfig():
            raise InputError(
                f"{given} is a classifier, which sees an image once: leave out "
                "what begins with test."
            )
        return _classifier(given, device), []
    folder, content = read_description(given)
    if content["task"] == "detection":
        return _detector(folder, content, test, device, config.score), []
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
