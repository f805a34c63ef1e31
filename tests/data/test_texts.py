"""Names as bytes, against a list of them."""

import pickle

import numpy as np
import pytest

from ssld.data import decode
from ssld.data.texts import Texts

NAMES = ["a/1.jpg", "é/ü.png", "", "x.jpg", "猫/犬/鳥.webp", "/"]


@pytest.mark.parametrize("names", [NAMES, [], [""]], ids=["some", "none", "empty"])
def test_texts_are_a_list(names):
    texts = pickle.loads(pickle.dumps(Texts(names)))
    assert len(texts) == len(names) and list(texts) == names
    rows = np.arange(len(names))[::-1]
    assert texts.take(rows) == names[::-1]
    assert texts.have("/").tolist() == ["/" in name for name in names]


def test_the_last_and_beyond():
    texts = Texts(NAMES)
    assert texts[-1] == "/" and texts[np.int64(1)] == NAMES[1]
    with pytest.raises(IndexError):
        texts[len(NAMES)]


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pillow_stands_in_for_simplejpeg(monkeypatch, mode, reduce):
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (9, 8, 3), np.uint8)).resize((333, 251))
    file = io.BytesIO()
    noise.convert(mode).save(file, "JPEG", exif=_turned())
    data = file.getvalue()
    with_it, size = decode.decode(data, reduce), decode.image_size(data)
    monkeypatch.setattr(decode, "simplejpeg", None)
    without = decode.decode(data, reduce)
    assert without.shape == with_it.shape and decode.image_size(data) == size == (333, 251)
    assert np.abs(without.astype(int) - with_it).max() <= 3
    with pytest.raises(decode.Unreadable):
        decode.decode(data[: len(data) // 2], reduce)


def _turned():
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
