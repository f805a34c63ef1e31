"""The class tables of Cityscapes and PASCAL VOC."""

from __future__ import annotations

from downstream.segmentation.data.class_table import IGNORE, ClassTable, Row, voc_colour

_CITYSCAPES = [
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
]

_IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, IGNORE)

CITYSCAPES = ClassTable(
    tuple(Row(*row) for row in _CITYSCAPES),
    "Cityscapes' table of classes",
    _IGNORED,
    assumed=r"[a-z-]+_\d{6}_\d{6}_leftImg8bit",
)
"""The 19 classes of the benchmark in the order of their trainId; every other id up to 33 is void
or `ignoreInEval`. Source: cityscapesScripts, cityscapesscripts/helpers/labels.py (mcordts). Its
license plate, id -1, is 255 in an 8-bit mask."""

_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)

VOC = ClassTable(
    tuple(Row(i, name, voc_colour(i)) for i, name in enumerate(_VOC.split())),
    "PASCAL VOC's table of classes",
    (IGNORE,),
    assumed=r"20\d\d_\d{6}",
)
"""Background and the 20 classes in alphabetical order; 255 is the border of an object. Source:
VOC2012 development kit, section 3.1 and VOCcolormap.m."""
