"""Two pictures with three boxes as each tool writes them; a writer returns the path to open."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (60, 80)
"""Height and width of both pictures, px."""
SCENE = {
    "a": [("cat", (10, 12, 40, 44))],
    "b": [("dog", (20, 8, 60, 30)), ("cat", (5, 5, 15, 25))],
}
"""Class and x1, y1, x2, y2 of each object, by the picture's stem."""
NAMES = ["cat", "dog"]


def pictures(folder: Path, stems: str = "ab") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (SIZE[1], SIZE[0]), (90, 120, 150)).save(folder / f"{stem}.jpg")


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


# YOLO


def lines(stem: str, outline: bool = False) -> str:
    height, width = SIZE
    rows = []
    for name, (x1, y1, x2, y2) in SCENE[stem]:
        if outline:
            points = [x1 / width, y1 / height, x2 / width, y1 / height, x2 / width, y2 / height,
                      x1 / width, y2 / height]  # fmt: skip
        else:
            points = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width,
                      (y2 - y1) / height]  # fmt: skip
        rows.append(" ".join([str(NAMES.index(name)), *(f"{x:.6f}" for x in points)]))
    return "\n".join(rows) + "\n"


def labels(images: Path, folder: Path, outline: bool = False) -> None:
    pictures(images)
    for stem in SCENE:
        text(folder / f"{stem}.txt", lines(stem, outline))


def ultralytics(root: Path) -> str:
    labels(root / "images/train", root / "labels/train")
    text(root / "data.yaml", "path: .\ntrain: images/train\nval: images/train\ntest:\n\n"
         "# Classes\nnames:\n  0: cat\n  1: dog\n")  # fmt: skip
    return f"{root}/data.yaml::train"


def ultralytics_in_datasets(root: Path) -> str:
    """`path: coco8` is relative to ultralytics' folder of all sets."""
    labels(root / "datasets/coco8/images/train", root / "datasets/coco8/labels/train")
    text(root / "project/coco8.yaml", "path: coco8 # dataset root dir\ntrain: images/train\n"
         "val: images/val\nnames: [cat, dog]\ndownload: https://x.y/coco8.zip\n")  # fmt: skip
    return f"{root}/project/coco8.yaml::train"


def ultralytics_named_otherwise(root: Path) -> str:
    labels(root / "images/train", root / "labels/train")
    text(
        root / "dataset.yaml", "train: images/train\nvalidation: images/train\nnames: [cat, dog]\n"
    )
    return f"{root}::train"


def ultralytics_folders_and_list(root: Path) -> str:
    """A list of folders, and a list file with `./` before each path."""
    for stem in SCENE:
        folder = {"a": "one", "b": "two"}[stem]
        pictures(root / f"{folder}/images", stem)
        text(root / f"{folder}/labels/{stem}.txt", lines(stem))
    text(root / "two.txt", "./two/images/b.jpg\n")
    text(root / "data.yaml", "train: [one/images, two.txt]\nval: one/images\nnames: [cat, dog]\n")
    return f"{root}/data.yaml::train"


def ultralytics_split_folders(root: Path) -> str:
    """`train: train`, which holds images/ and labels/."""
    labels(root / "train/images", root / "train/labels")
    text(root / "data.yaml", "train: train\nval: train\nnc: 2\nnames: ['cat', 'dog']\n")
    return f"{root}/data.yaml::train"


def yolo_list_of_another_machine(root: Path) -> str:
    labels(root / "images", root / "labels")
    text(root / "train.txt", "/content/sets/x/images/a.jpg\r\nD:\\sets\\x\\images\\b.jpg\r\n")
    text(root / "data.yaml", "path: /content/sets/x\ntrain: train.txt\nval: train.txt\n"
         "names: [cat, dog]\n")  # fmt: skip
    return f"{root}/data.yaml::train"


def yolo_outlines(root: Path) -> str:
    labels(root / "images/train", root / "labels/train", outline=True)
    text(root / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    return f"{root}/data.yaml::train"


def roboflow_yolo(root: Path) -> str:
    labels(root / "valid/images", root / "valid/labels")
    text(root / "README.roboflow.txt", "my - v1\n")
    text(root / "README.dataset.txt", "https://universe.roboflow.com/x\n")
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
         "nc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: x\n  version: 1\n")  # fmt: skip
    return f"{root}/data.yaml::val"


def roboflow_valid(root: Path) -> str:
    roboflow_yolo(root)
    return f"{root}::valid"


def roboflow_darknet(root: Path) -> str:
    labels(root / "train", root / "train")
    text(root / "train/_darknet.labels", "cat\ndog\n")
    text(root / "README.dataset.txt", "x\n")
    return f"{root}::train"


def labelimg_yolo(root: Path) -> str:
    labels(root, root)
    text(root / "classes.txt", "cat\ndog\n")
    return str(root)


def label_studio(root: Path) -> str:
    labels(root / "images", root / "labels")
    text(root / "classes.txt", "cat\ndog\n")
    text(root / "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    return str(root)


def cvat_yolo_1_1(root: Path) -> str:
    labels(root / "obj_train_data", root / "obj_train_data")
    text(root / "obj.names", "cat\ndog\n")
    text(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    text(root / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    return f"{root}::train"


def cvat_ultralytics(root: Path) -> str:
    labels(root / "images/train", root / "labels/train")
    text(root / "train.txt", "data/images/train/a.jpg\ndata/images/train/b.jpg\n")
    text(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    return f"{root}/data.yaml"


# VOC

OBJECT = (
    "\t<object>\n\t\t<name>{}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
    "\t\t<difficult>{}</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{}</xmin>\n\t\t\t<ymin>{}</ymin>\n"
    "\t\t\t<xmax>{}</xmax>\n\t\t\t<ymax>{}</ymax>\n\t\t</bndbox>\n\t</object>\n"
)


def xml(stem: str, names: dict[str, str] | None = None, head: str = "") -> str:
    """Corners count from 1, so that 1 is added to the upper left one."""
    objects = "".join(
        OBJECT.format((names or {}).get(name, name), "0", x1 + 1, y1 + 1, x2, y2)
        for name, (x1, y1, x2, y2) in SCENE[stem]
    )
    return (
        f'{head}<annotation verified="yes">\n\t<folder>x</folder>\n\t<filename>{stem}.jpg'
        f"</filename>\n\t<path>C:\\x\\{stem}.jpg</path>\n\t<source>\n\t\t<database>Unknown</database>\n"
        f"\t</source>\n\t<size>\n\t\t<width>{SIZE[1]}</width>\n\t\t<height>{SIZE[0]}</height>\n"
        f"\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n{objects}</annotation>\n"
    )


def voc(root: Path) -> str:
    pictures(root / "JPEGImages")
    for stem in SCENE:
        text(root / f"Annotations/{stem}.xml", xml(stem))
    text(root / "ImageSets/Main/train.txt", "a\nb\n")
    text(root / "ImageSets/Main/cat_train.txt", "a  1\nb -1\n")
    return f"{root}::train"


def voc_by_split(root: Path) -> str:
    pictures(root / "train/images")
    for stem in SCENE:
        text(root / f"train/annotations/{stem}.xml", xml(stem))
    return f"{root}::train"


def oxford_pets(root: Path) -> str:
    pictures(root / "images")
    for stem in SCENE:
        text(root / f"annotations/xmls/{stem}.xml", xml(stem))
    return str(root)


def labelimg_voc(root: Path) -> str:
    pictures(root)
    for stem in SCENE:
        text(root / f"{stem}.xml", xml(stem))
    return str(root)


def roboflow_voc(root: Path) -> str:
    pictures(root / "train")
    for stem in SCENE:
        text(root / f"train/{stem}.xml", xml(stem))
    text(root / "README.roboflow.txt", "x\n")
    return f"{root}::train"


# Create ML


def create_ml_entry(stem: str) -> dict[str, Any]:
    boxes = [
        {"label": name, "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2,
                                        "width": x2 - x1, "height": y2 - y1}}
        for name, (x1, y1, x2, y2) in SCENE[stem]
    ]  # fmt: skip
    return {"image": f"{stem}.jpg", "verified": False, "annotations": boxes}


def create_ml(root: Path) -> str:
    """labelImg's: a file for each picture."""
    pictures(root)
    for stem in SCENE:
        text(root / f"{stem}.json", json.dumps([create_ml_entry(stem)]))
    return str(root)


def roboflow_create_ml(root: Path) -> str:
    pictures(root / "train")
    content = json.dumps([create_ml_entry(stem) for stem in SCENE])
    return str(text(root / "train/_annotations.createml.json", content))


# labelme


def shape(label: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "description": "",
            "shape_type": kind, "flags": {}, "mask": None, **more}  # fmt: skip


def labelme_file(root: Path, stem: str, shapes: list[dict[str, Any]], **more: Any) -> None:
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes,
               "imagePath": f"{stem}.jpg", "imageData": None,
               "imageHeight": SIZE[0], "imageWidth": SIZE[1], **more}  # fmt: skip
    text(root / f"{stem}.json", json.dumps(content, ensure_ascii=False, indent=2))


def corners(box: tuple[int, ...]) -> list[list[int]]:
    x1, y1, x2, y2 = box
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def labelme(root: Path) -> str:
    """Version 5: rectangles, from any corner."""
    pictures(root)
    for stem, objects in SCENE.items():
        shapes = [shape(name, [[x2, y1], [x1, y2]], "rectangle")
                  for name, (x1, y1, x2, y2) in objects]  # fmt: skip
        labelme_file(root, stem, shapes)
    return str(root)


def labelme_3(root: Path) -> str:
    """Version 3: colours, no types; the picture embedded, its path from Windows."""
    pictures(root / "images")
    for stem, objects in SCENE.items():
        data = base64.b64encode((root / f"images/{stem}.jpg").read_bytes()).decode()
        shapes = [{"label": name, "line_color": None, "fill_color": None, "points": corners(box)}
                  for name, box in objects]  # fmt: skip
        content = {"version": "3.16.7", "flags": {}, "shapes": shapes,
                   "lineColor": [0, 255, 0, 128], "fillColor": [255, 0, 0, 128],
                   "imagePath": f"..\\images\\{stem}.jpg", "imageData": data}  # fmt: skip
        text(root / f"json/{stem}.json", json.dumps(content, indent=2))
    return f"{root}/json"


def x_anylabeling(root: Path) -> str:
    """Rectangles of four corners, `difficult`, and a path of another machine."""
    pictures(root / "train")
    for stem, objects in SCENE.items():
        shapes = [shape(name, corners(box), "rectangle", difficult=False, score=None)
                  for name, box in objects]  # fmt: skip
        labelme_file(root / "train", stem, shapes, imagePath=f"D:\\data\\{stem}.jpg")
    text(root / "classes.txt", "cat\ndog\n")
    return f"{root}::train"


def labelme_mask(root: Path, part: np.ndarray, x: int, y: int) -> str:
    pictures(root, "a")
    file = io.BytesIO()
    Image.fromarray(part * 255).convert("1").save(file, "PNG")
    last = [x + part.shape[1] - 1, y + part.shape[0] - 1]
    mask = base64.b64encode(file.getvalue()).decode()
    labelme_file(root, "a", [shape("cat", [[x, y], last], "mask", mask=mask)])
    return str(root)


# CVAT

CVAT_BOX = (
    '    <box label="{}" source="manual" occluded="0" xtl="{:.2f}" ytl="{:.2f}" xbr="{:.2f}" '
    'ybr="{:.2f}" z_order="0">\n      <attribute name="colour">red</attribute>\n    </box>\n'
)
META = (
    "  <meta>\n    <{0}>\n      <id>1</id>\n      <labels>\n{1}      </labels>\n    </{0}>\n"
    "    <dumped>2024-01-01 00:00:00.000000+00:00</dumped>\n  </meta>\n"
)
LABEL = (
    "        <label>\n          <name>{}</name>\n          <color>#fa3253</color>\n          "
    "<type>any</type>\n          <attributes>\n            <attribute>\n              "
    "<name>colour</name>\n            </attribute>\n          </attributes>\n        </label>\n"
)


def cvat_xml(root: Path, inside: dict[str, str], kind: str = "task", more: str = "") -> None:
    images = "".join(
        f'  <image id="{i}" name="{stem}.jpg"{more} width="{SIZE[1]}" height="{SIZE[0]}">\n'
        f"{shapes}  </image>\n"
        for i, (stem, shapes) in enumerate(inside.items())
    )
    text(
        root / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"{META.format(kind, ''.join(map(LABEL.format, NAMES)))}{images}</annotations>\n",
    )


def cvat_boxes(stem: str) -> str:
    tag = '    <tag label="dog" source="manual">\n    </tag>\n'
    return "".join(CVAT_BOX.format(name, *box) for name, box in SCENE[stem]) + tag


def cvat(root: Path) -> str:
    pictures(root / "images")
    cvat_xml(root, {stem: cvat_boxes(stem) for stem in SCENE})
    return str(root)


def cvat_polygons(root: Path) -> str:
    pictures(root / "pictures")
    shapes = {
        stem: "".join(
            f'    <polygon label="{name}" source="manual" occluded="0" points="'
            f'{";".join(f"{x:.2f},{y:.2f}" for x, y in corners(box))}" z_order="0">\n'
            "    </polygon>\n"
            for name, box in objects
        )
        for stem, objects in SCENE.items()
    }
    cvat_xml(root, shapes, "job")
    return f"{root}/annotations.xml::{root}/pictures"


def cvat_project(root: Path) -> str:
    """A subset of one task, and another of another."""
    pictures(root / "images/Train")
    cvat_xml(root, {stem: cvat_boxes(stem) for stem in SCENE}, "project",
             ' subset="Train" task_id="5"')  # fmt: skip
    file = root / "annotations.xml"
    other = (
        f'  <image id="9" name="a.jpg" subset="Test" task_id="6" width="{SIZE[1]}" height="60">\n'
    )
    file.write_text(
        file.read_text().replace("</annotations>", f"{other}  </image>\n</annotations>")
    )
    return f"{root}::Train"


def cvat_mask(root: Path, part: np.ndarray, x: int, y: int) -> str:
    pictures(root / "images", "a")
    runs, last = [0], 0
    for pixel in part.ravel().tolist():
        if pixel != last:
            runs.append(0)
            last = pixel
        runs[-1] += 1
    cvat_xml(root, {"a": (
        f'    <mask label="cat" source="manual" occluded="0" rle="{str(runs)[1:-1]}" left="{x}" '
        f'top="{y}" width="{part.shape[1]}" height="{part.shape[0]}" z_order="0">\n    </mask>\n'
    )})  # fmt: skip
    return str(root)


# COCO


def coco(root: Path, file_name: str = "{}.jpg", images: str = "images") -> str:
    """Ids with a gap, and a name in another alphabet among the keys nobody reads."""
    pictures(root / images)
    annotations = []
    for i, (_, objects) in enumerate(SCENE.items()):
        for name, (x1, y1, x2, y2) in objects:
            entry = {"id": len(annotations) + 1, "image_id": i + 1, "iscrowd": 0,
                     "category_id": 3 + 9 * (name == "dog"), "area": (x2 - x1) * (y2 - y1),
                     "bbox": [x1, y1, x2 - x1, y2 - y1],
                     "segmentation": [sum(map(list, corners((x1, y1, x2, y2))), [])]}  # fmt: skip
            annotations.append(entry)
    content = {
        "info": {"description": "ещё"},
        "images": [{"id": i + 1, "file_name": file_name.format(stem), "height": SIZE[0],
                    "width": SIZE[1]} for i, stem in enumerate(SCENE)],
        "annotations": annotations,
        "categories": [{"id": 12, "name": "dog", "supercategory": "x"}, {"id": 3, "name": "cat"}],
    }  # fmt: skip
    return str(text(root / "set.json", json.dumps(content)))


def edit(path: str, change: Any) -> str:
    content = json.loads(Path(path).read_text())
    for entry in content["annotations"]:
        change(entry, content)
    Path(path).write_text(json.dumps(content))
    return path


def coco_without_bbox(root: Path) -> str:
    return edit(coco(root), lambda entry, _: entry.pop("bbox"))


def runs_of(entry: dict[str, Any]) -> np.ndarray:
    x1, y1, width, height = entry["bbox"]
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y1 : y1 + height, x1 : x1 + width] = 1
    return mask


def coco_runs(root: Path) -> str:
    """Uncompressed run lengths, as of crowds, and no bbox."""

    def change(entry: dict[str, Any], _: Any) -> None:
        pixels = runs_of(entry).ravel(order="F")
        edges = np.flatnonzero(np.diff(pixels)) + 1
        counts = np.diff([0, *edges.tolist(), len(pixels)]).tolist()
        entry["segmentation"] = {"size": list(SIZE), "counts": counts}
        del entry["bbox"]

    return edit(coco(root), change)


def coco_compressed(root: Path) -> str:
    """Compressed run lengths, as pycocotools and the SAM tools write them."""
    from faster_coco_eval import mask

    def change(entry: dict[str, Any], _: Any) -> None:
        packed = mask.encode(runs_of(entry))
        counts = packed["counts"]
        counts = counts if isinstance(counts, str) else counts.decode()
        entry["segmentation"] = {"size": list(SIZE), "counts": counts}
        del entry["bbox"]

    return edit(coco(root), change)


def coco_text_ids(root: Path) -> str:
    """Ids as text, as converters from other tools write them."""

    def change(entry: dict[str, Any], content: Any) -> None:
        entry["image_id"] = f"img-{'ab'[entry['image_id'] - 1]}"
        entry["category_id"] = str(entry["category_id"])
        for i, image in enumerate(content["images"]):
            image["id"] = f"img-{'ab'[i]}"
        for category in content["categories"]:
            category["id"] = str(category["id"])

    return edit(coco(root), change)


def coco_mixed_ids(root: Path) -> str:
    """`"image_id": "1"` of the image 1."""
    return edit(coco(root), lambda entry, _: entry.update(image_id=str(entry["image_id"])))


def coco_absolute(root: Path) -> str:
    return coco(root, file_name=f"{root}/elsewhere/{{}}.jpg", images="elsewhere")


def coco_of_another_machine(root: Path) -> str:
    return coco(root, file_name="/home/me/set/images/{}.jpg")


def coco_windows(root: Path) -> str:
    return coco(root, file_name="D:\\me\\set\\images\\{}.jpg")


def coco_backslashes(root: Path) -> str:
    return coco(root, file_name="train\\{}.jpg", images="images/train")


def roboflow_coco(root: Path) -> str:
    pictures(root / "train")
    Path(coco(root / "train", images=".")).rename(root / "train/_annotations.coco.json")
    return f"{root}/train/_annotations.coco.json"


def cvat_coco(root: Path) -> str:
    path = Path(coco(root))
    (root / "annotations").mkdir()
    path.rename(root / "annotations/instances_default.json")
    return f"{root}/annotations/instances_default.json"


BOX_WRITERS = [
    ultralytics, ultralytics_in_datasets, ultralytics_named_otherwise, ultralytics_folders_and_list,
    ultralytics_split_folders, yolo_list_of_another_machine, yolo_outlines, roboflow_yolo,
    roboflow_valid, roboflow_darknet, labelimg_yolo, label_studio, cvat_yolo_1_1, cvat_ultralytics,
    voc, voc_by_split, oxford_pets, labelimg_voc, roboflow_voc, create_ml, roboflow_create_ml,
    labelme, labelme_3, x_anylabeling, cvat, cvat_polygons, cvat_project, coco, coco_without_bbox,
    coco_runs, coco_compressed, coco_text_ids, coco_mixed_ids, coco_absolute,
    coco_of_another_machine, coco_windows, coco_backslashes, roboflow_coco, cvat_coco,
]  # fmt: skip
