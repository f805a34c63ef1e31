"""Make the near-duplicate benchmark: protected photographs, edits of them, clean ones.

    python benchmarks/near_duplicates.py --photos imagenet-sample-256.tar --protected 596 \\
        --more clothing-small-160.tar camvid.tar --clean 4306 --out OUT

`--photos` and `--more` take folders and tars. A random part of `--photos` is protected; the rest
of it, then `--more`, are the clean images (what is neither is left out). OUT gets

    protected/   the protected photographs
    gallery/     24 edits of each, and the clean photographs, in one shuffled numbering
    truth.csv    gallery file, protected file (empty: clean), edit

Clean images get the same text, border and screenshot edits as positives, one in three, so that
nobody wins by recognising the edit. The same photographs and seed give the same files. A crop of
50 % keeps half of the area, a size of 50 % half of each side. The kinds of edit follow the image
copy detection literature (Douze et al. 2021, ISC2021, appendix; arXiv 2106.09672). Every fourth
protected photograph has further edits, `stress_...`, which are beyond what is promised and are
counted apart.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import multiprocessing
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import parser
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Edit = Callable[[Image.Image, random.Random], Image.Image]

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
QUALITY = 90
"""JPEG quality of everything that is not itself an edit of the quality."""
WORDS = "sale new photo home best free offer share summer daily street view paper light market"


def jpeg(image: Image.Image, _: random.Random, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resize(image: Image.Image, _: random.Random, share: float) -> Image.Image:
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.BICUBIC)


def crop(image: Image.Image, rng: random.Random, share: float) -> Image.Image:
    """`share` of the area, of the same aspect, somewhere."""
    width, height = (max(1, round(side * math.sqrt(share))) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def flip(image: Image.Image, _: random.Random) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def rotate(image: Image.Image, rng: random.Random, degrees: float) -> Image.Image:
    angle = rng.choice((-1, 1)) * degrees
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(127, 127, 127))


def colour(image: Image.Image, rng: random.Random, strength: float = 0.4) -> Image.Image:
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(changes)
    for change in changes:
        image = change(image).enhance(rng.uniform(1 - strength, 1 + strength))
    hue, saturation, value = image.convert("HSV").split()
    turn = rng.randint(-round(64 * strength), round(64 * strength))  # of 256 for the full circle
    hue = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def blur(image: Image.Image, _: random.Random, radius_px: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius_px * min(image.size) / 256))


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS.split()) for _ in range(words))


def caption(image: Image.Image, rng: random.Random) -> Image.Image:
    image = image.copy()
    font = ImageFont.load_default(size=image.height * rng.uniform(0.08, 0.16))
    place = (rng.uniform(0, 0.5) * image.width, rng.uniform(0, 0.85) * image.height)
    ink = tuple(rng.randint(0, 255) for _ in range(3))
    ImageDraw.Draw(image).text(place, sentence(rng, 3), fill=ink, font=font)
    return image


def text(image: Image.Image, rng: random.Random) -> Image.Image:
    for _ in range(rng.randint(1, 3)):
        image = caption(image, rng)
    return image


def border(image: Image.Image, rng: random.Random) -> Image.Image:
    edges = [round(rng.uniform(0.05, 0.2) * min(image.size)) for _ in range(4)]
    size = (image.width + edges[0] + edges[2], image.height + edges[1] + edges[3])
    framed = Image.new("RGB", size, tuple(rng.randint(0, 255) for _ in range(3)))
    framed.paste(image, (edges[0], edges[1]))
    return framed


def screenshot(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture in a page with a bar, a column of text and buttons; it keeps its size there."""
    width = round(image.width * rng.uniform(1.4, 1.9))
    height = round(image.height * rng.uniform(1.4, 1.9))
    paper, ink = rng.choice((((250, 250, 250), (40, 40, 40)), ((32, 33, 36), (220, 220, 220))))
    page = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(page)
    bar_px = round(0.08 * height)
    accent = tuple(rng.randint(0, 255) for _ in range(3))
    draw.rectangle((0, 0, width, bar_px), fill=accent)
    font = ImageFont.load_default(size=max(6, 0.045 * height))
    for line in range(rng.randint(8, 16)):
        place = (0.03 * width, bar_px + (0.02 + 0.06 * line) * height)
        draw.text(place, sentence(rng, rng.randint(4, 9)), fill=ink, font=font)
    for button in range(rng.randint(2, 5)):
        left, top = (0.1 + 0.17 * button) * width, 0.93 * height
        draw.rounded_rectangle((left, top, left + 0.12 * width, 0.985 * height), 4, fill=accent)
    left, top = rng.randint(0, width - image.width), rng.randint(bar_px, height - image.height)
    page.paste(image, (left, top))
    return page


def mild_mix(image: Image.Image, rng: random.Random) -> Image.Image:
    image = crop(image, rng, rng.uniform(0.7, 0.9))
    image = colour(image, rng, 0.2)
    image = resize(image, rng, rng.uniform(0.6, 0.9))
    return jpeg(image, rng, rng.randint(50, 80))


def hard_mix(image: Image.Image, rng: random.Random) -> Image.Image:
    image = crop(image, rng, rng.uniform(0.6, 0.9))
    image = flip(image, rng) if rng.random() < 0.5 else image
    image = rotate(image, rng, rng.uniform(2, 6))
    image = caption(colour(image, rng, 0.3), rng)
    image = resize(image, rng, rng.uniform(0.5, 0.8))
    return jpeg(image, rng, rng.randint(30, 50))


def harder_mix(image: Image.Image, rng: random.Random) -> Image.Image:
    image = crop(image, rng, rng.uniform(0.4, 0.7))
    image = flip(image, rng) if rng.random() < 0.5 else image
    image = rotate(image, rng, rng.uniform(3, 10))
    image = text(colour(image, rng), rng)
    image = resize(image, rng, rng.uniform(0.5, 0.8))
    return jpeg(image, rng, rng.randint(25, 50))


QUALITIES = {"jpeg_80": 80, "jpeg_50": 50, "jpeg_20": 20}
EDITS: dict[str, Edit] = {
    **dict.fromkeys(QUALITIES, lambda image, _: image),  # made by the file's own quality
    **{f"resize_{p}": functools.partial(resize, share=p / 100) for p in (75, 50, 25)},
    "squash": lambda image, _: image.resize((min(image.size),) * 2, Image.Resampling.BICUBIC),
    **{f"crop_{p}": functools.partial(crop, share=p / 100) for p in (90, 70, 50)},
    "flip": flip,
    **{f"rotate_{degrees}": functools.partial(rotate, degrees=degrees) for degrees in (5, 20)},
    "colour": colour,
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    **{f"blur_{radius}": functools.partial(blur, radius_px=radius) for radius in (1, 2)},
    "text": text,
    "border": border,
    "screenshot": screenshot,
    "mild_mix": mild_mix,
    "mild_mix_flip": lambda image, rng: mild_mix(flip(image, rng), rng),
    "hard_mix_1": hard_mix,
    "hard_mix_2": hard_mix,
}
STRESS: dict[str, Edit] = {
    "stress_crop_25_flip": lambda image, rng: flip(crop(image, rng, 0.25), rng),
    "stress_faded": lambda image, _: Image.blend(
        image, Image.new("RGB", image.size, (200, 200, 200)), 0.75
    ),
    "stress_tiny": lambda image, rng: resize(image, rng, 48 / max(image.size)),
    "stress_mix": harder_mix,
    "stress_page": lambda image, rng: screenshot(screenshot(image, rng), rng),
}
"""The last one has a fifth to a tenth of the page's area: a picture in a picture in a page is also
what a collage looks like to matching."""
CLEAN_KINDS = ("border", "screenshot", "text")
"""One in three of the clean images has one of these edits."""


def photographs(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every photograph of a folder or tar, sorted by name."""
    if source.is_dir():
        for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES):
            yield str(path.relative_to(source)), path.read_bytes()
        return
    with tarfile.open(source) as archive:
        members = [m for m in archive if Path(m.name).suffix.lower() in PHOTO_SUFFIXES]
        for member in sorted(members, key=lambda member: member.name):
            yield member.name, archive.extractfile(member).read()  # type: ignore[union-attr]


def make(job: tuple[Path, bytes, str, str]) -> None:
    """Write one gallery image: (path, photograph, edit, key of the random numbers)."""
    path, data, name, key = job
    with Image.open(io.BytesIO(data)) as stored:
        image = stored.convert("RGB")
    if name != "none":
        image = {**EDITS, **STRESS}[name](image, random.Random(f"{key}/{name}"))
    image.save(path, "JPEG", quality=QUALITIES.get(name, QUALITY))


def build(photos: Path, more: list[Path], out: Path, protected: int, clean: int, seed: int) -> None:
    """Write the benchmark; see the header.

    Raises:
        ValueError: fewer photographs than asked for.
    """
    rng = random.Random(seed)
    pool = list(photographs(photos))
    rng.shuffle(pool)
    others = pool[protected:] + [photo for source in more for photo in photographs(source)]
    if len(pool) < protected or len(others) < clean:
        raise ValueError(
            f"{len(pool)} photographs for {protected} protected, {len(others)} for {clean} clean "
            "ones: ask for fewer, or give more with --more"
        )
    (out / "protected").mkdir(parents=True)
    (out / "gallery").mkdir()
    items = []
    for i, (name, data) in enumerate(sorted(pool[:protected])):
        file = name.replace("/", "_")
        (out / "protected" / file).write_bytes(data)
        items += [(name, data, edit, file) for edit in EDITS]
        items += [(name, data, edit, file) for edit in STRESS if i % 4 == 0]
    for name, data in others[:clean]:
        edit = rng.choice(CLEAN_KINDS) if rng.random() < 1 / 3 else "none"
        items.append((name, data, edit, ""))
    rng.shuffle(items)
    files = [f"{number:06d}.jpg" for number in range(len(items))]
    with (out / "truth.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("gallery", "protected", "edit"))
        table.writerows((file, item[3], item[2]) for file, item in zip(files, items, strict=True))
    jobs = [
        (out / "gallery" / file, data, edit, f"{seed}/{name}")
        for file, (name, data, edit, _) in zip(files, items, strict=True)
    ]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as workers:
        for _ in workers.imap_unordered(make, jobs, chunksize=32):
            pass


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--photos", type=Path, required=True)
    words.add_argument("--more", type=Path, nargs="*", default=[])
    words.add_argument("--protected", type=int, required=True)
    words.add_argument("--clean", type=int, required=True)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, required=True)
    build(**vars(words.parse_args()))


if __name__ == "__main__":
    main()
