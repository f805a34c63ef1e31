"""CVAT's "CVAT for video 1.1": tracks, whose shapes each say their frame, become what "CVAT for
images 1.1" has, images with shapes.

CVAT writes every frame of a track, also those between keyframes, and the end of it as a shape that
is `outside`, which is none. Frames are numbered as in the video, and so are their pictures:
`images/frame_000012.PNG` is frame 12 (opencv/cvat `dataset_manager/bindings.py`, `abs_frame_id`),
also where a task begins later or takes every n-th frame (`start_frame`, `frame_filter`).
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from downstream.dense.pictures import images_by_stem
from downstream.dense.shapes import counted
from downstream.dense.texts import shown
from ssld.common.errors import InputError

FRAME = re.compile("frame_([0-9]{6,9})")
FOR_IMAGES = "export it as CVAT for images 1.1, with the images"


def frames_of_tracks(file: Path, tree: Element, images: str | None) -> tuple[str, list[str]]:
    """Give `tree` an `image` for each frame that has a picture, with the shapes of all tracks.

    Args:
        images: folder of the pictures; by default `images` beside the file, or the file's own.

    Returns:
        the folder of the pictures, and what is to be said of frames that are left out.

    Raises:
        InputError: tracks beside images, of a project, or of a task of images, whose names the
            file does not say; a shape whose frame has no picture; a picture after the last frame.
    """
    if tree.find("image") is not None:
        raise InputError(f"{file}: has tracks of a video and images, too; {FOR_IMAGES}")
    if tree.find("meta/project") is not None or tree.find("track[@task_id]") is not None:
        raise InputError(f"{file}: has the tracks of a project; export each of its tasks by itself")
    if (tree.findtext("meta/*/mode") or "").strip() == "annotation":
        raise InputError(f"{file}: has tracks of images, and not their names; {FOR_IMAGES}")
    folder, pictures = _pictures(file, images)
    shapes = _shapes(file, tree)
    for number, of_frame in shapes.items():
        if number not in pictures:
            raise InputError(
                f"{file}: {of_frame[0][0]} is of frame {number}, and {folder} has no "
                f"frame_{number:06d}; {FOR_IMAGES}"
            )
    frames = _frames(file, tree, pictures)
    chosen = [number for number in sorted(pictures) if number in frames or number in shapes]
    size = {side: tree.findtext(f"meta/*/original_size/{side}") for side in ("width", "height")}
    stated = {side: text.strip() for side, text in size.items() if text}
    for number in chosen:
        image = SubElement(tree, "image", {"name": pictures[number], **stated})
        image.extend(shape for _, shape in shapes.get(number, ()))
    left = {
        "frames without a picture": len(set(frames) - pictures.keys()),
        "pictures of other frames": len(pictures) - len(chosen),
    }
    return str(folder), counted("left out", {what: count for what, count in left.items() if count})


def _pictures(file: Path, images: str | None) -> tuple[Path, dict[int, str]]:
    """Their folder, and the name of each by its frame."""
    folders = [Path(images)] if images else [file.parent / "images", file.parent]
    for folder in filter(Path.is_dir, folders):
        named = images_by_stem(folder)
        stems = {int(match[1]): stem for stem in named if (match := FRAME.fullmatch(stem))}
        for stem in stems.values():
            if len(named[stem]) > 1:
                raise InputError(f"{folder}: {' and '.join(named[stem])} are one frame; remove one")
        if stems:
            return folder, {number: named[stem][0] for number, stem in stems.items()}
    raise InputError(
        f"{folders[0]}: has no pictures frame_000000, frame_000001 and so on of the video of "
        f"{file}; {FOR_IMAGES}"
    )


def _shapes(file: Path, tree: Element) -> dict[int, list[tuple[str, Element]]]:
    """Those that exist, with their places, by frame."""
    found: dict[int, list[tuple[str, Element]]] = {}
    for i, track in enumerate(tree.findall("track")):
        for j, shape in enumerate(track):
            place, text = f"track {i}: {shape.tag} {j}", shape.get("frame", "")
            if not re.fullmatch("[0-9]{1,9}", text):
                raise InputError(f"{file}: {place}: frame is {shown(text)}; give a number")
            if shape.get("outside", "0").strip().lower() not in ("1", "true"):
                shape.set("label", track.get("label", ""))
                found.setdefault(int(text), []).append((place, shape))
    return found


def _frames(file: Path, tree: Element, pictures: dict[int, str]) -> range | list[int]:
    """Those of the task as `meta` has them, without it those of the pictures."""
    texts = [tree.findtext(f"meta/task/{key}") or "" for key in ("start_frame", "stop_frame")]
    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", text) for text in texts):
        return sorted(pictures)
    start, stop = map(int, texts)
    step = re.search("step *= *([1-9][0-9]{0,8})", tree.findtext("meta/task/frame_filter") or "")
    beyond = max(pictures)
    if beyond > stop:  # as where another tool wrote them, and counted from 1
        raise InputError(
            f"{file}: {pictures[beyond]} is after the last frame, {stop}: are the pictures "
            f"numbered from 1, or of another video? {FOR_IMAGES}"
        )
    return range(start, stop + 1, int(step[1]) if step else 1)
