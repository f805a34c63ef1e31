"""Tracks as "CVAT for video 1.1" writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from downstream.detection.data.boxes import open_boxes
from ssld.common.errors import InputError

META = """  <meta>
    <task>
      <id>7</id>
      <name>street</name>
      <size>3</size>
      <mode>interpolation</mode>
      <overlap>5</overlap>
      <bugtracker></bugtracker>
      <created>2024-01-01 00:00:00.000000+00:00</created>
      <updated>2024-01-01 00:00:00.000000+00:00</updated>
      <subset>default</subset>
      <start_frame>10</start_frame>
      <stop_frame>20</stop_frame>
      <frame_filter>step=5</frame_filter>
      <segments>
        <segment>
          <id>7</id>
          <start>0</start>
          <stop>2</stop>
          <url>http://localhost:8080/api/jobs/7</url>
        </segment>
      </segments>
      <labels>
        <label>
          <name>dog</name>
          <color>#fa3253</color>
          <type>any</type>
          <attributes>
          </attributes>
        </label>
        <label>
          <name>cat</name>
          <color>#33ddff</color>
          <type>any</type>
          <attributes>
          </attributes>
        </label>
      </labels>
      <original_size>
        <width>80</width>
        <height>60</height>
      </original_size>
      <source>street.mp4</source>
    </task>
    <dumped>2024-01-01 00:00:00.000000+00:00</dumped>
  </meta>
"""
BOX = (
    '    <box frame="{}" keyframe="{}" outside="{}" occluded="0" xtl="{:.2f}" ytl="10.00" '
    'xbr="30.00" ybr="40.00" z_order="0">\n      <attribute name="x">1</attribute>\n    </box>\n'
)
POLYGON = (
    '    <polygon frame="{}" keyframe="1" outside="{}" occluded="0" '
    'points="5.00,5.00;25.00,5.00;25.00,15.00" z_order="0">\n    </polygon>\n'
)
POINTS = (
    '    <points frame="10" keyframe="1" outside="0" occluded="0" points="1.00,1.00"></points>\n'
)
TRACKS = (
    '  <track id="0" label="cat" source="manual">\n'
    + BOX.format(10, 1, 0, 10) + BOX.format(15, 0, 0, 12) + BOX.format(20, 1, 1, 14)
    + '  </track>\n  <track id="1" label="dog" source="manual">\n'
    + POLYGON.format(15, 0) + POLYGON.format(20, 1)
    + '  </track>\n  <track id="2" label="dog" source="manual">\n' + POINTS + "  </track>\n"
)  # fmt: skip


def video(root: Path, frames: tuple[int, ...] = (10, 15, 20), ending: str = "PNG") -> Path:
    (root / "images").mkdir(parents=True)
    for frame in frames:
        picture = Image.new("RGB", (80, 60), (90, 120, 150))
        picture.save(root / f"images/frame_{frame:06d}.{ending}")
    file = root / "annotations.xml"
    file.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"{META}{TRACKS}</annotations>\n"
    )
    return file


def boxes(path: str) -> dict[str, list[tuple[str, list[float]]]]:
    source = open_boxes(path)
    found = {}
    for i in range(len(source)):
        objects = source.boxes(i)
        labels = [source.class_names[x] for x in objects.labels.tolist()]
        found[Path(source.sample_id(i)).name] = list(
            zip(labels, objects.xyxy.tolist(), strict=True)
        )
    return found


@pytest.mark.parametrize("ending", ["PNG", "jpg"])
@pytest.mark.parametrize("given", ["folder", "file", "images"])
def test_each_frame_has_what_is_not_outside(tmp_path, ending, given):
    file = video(tmp_path, ending=ending)
    path = {"folder": tmp_path, "file": file, "images": f"{file}::{tmp_path}/images"}[given]
    assert boxes(str(path)) == {
        f"frame_000010.{ending}": [("cat", [10, 10, 30, 40])],
        f"frame_000015.{ending}": [("cat", [12, 10, 30, 40]), ("dog", [5, 5, 25, 15])],
        f"frame_000020.{ending}": [],
    }
    source = open_boxes(str(path))
    assert source.class_names == ["dog", "cat"]  # as in meta
    assert "left out: 1 points" in " ".join(source.report.remarks)


def test_frames_that_the_task_left_out_or_deleted(tmp_path):
    """Its step is 5, and frame 20, without shapes, was deleted."""
    video(tmp_path, (10, 11, 12, 15))
    assert list(boxes(str(tmp_path))) == ["frame_000010.PNG", "frame_000015.PNG"]
    remarks = " ".join(open_boxes(str(tmp_path)).report.remarks)
    assert "left out: 1 frames without a picture, 2 pictures of other frames" in remarks


def test_areas_of_a_video(tmp_path):
    from downstream.segmentation.data.masks import open_masks

    video(tmp_path)
    assert len(open_masks(str(tmp_path))) == 3


@pytest.mark.parametrize(
    ("frames", "old", "new", "said"),
    [
        ((10, 20), "", "", "track 0: box 1 is of frame 15, and .* has no frame_000015; export"),
        ((10, 15, 20, 21), "", "", "frame_000021.PNG is after the last frame, 20: .*from 1"),
        ((), "", "", "has no pictures frame_000000"),
        ((10, 15, 20), 'frame="15"', 'frame="x"', "track 0: box 1: frame is 'x'; give a number"),
        ((10, 15, 20), ">interpolation<", ">annotation<", "tracks of images, and not their names"),
        ((10, 15, 20), 'label="cat"', 'label="cow"', "box 1: label is 'cow', which meta does not"),
        ((10, 15, 20), 'label="cat"', 'label="cat" task_id="3"', "a project; export each of its"),
        ((10, 15, 20), "<track", '<image name="a"/><track', "tracks of a video and images, too"),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path, frames, old, new, said):
    file = video(tmp_path, frames)
    file.write_text(file.read_text().replace(old, new, 1) if old else file.read_text())
    with pytest.raises(InputError, match=said):
        open_boxes(str(tmp_path))


def test_two_pictures_of_one_frame(tmp_path):
    file = video(tmp_path)
    (file.parent / "images/frame_000010.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="frame_000010.PNG and frame_000010.jpg are one frame"):
        open_boxes(str(tmp_path))
