"""What PaddleClas answers for reproducible weights, recorded in `paddle/<Class>.npz`.

Each holds `logits` [2, 1000] of `INPUT` and the keys and shapes of the state dict, which was filled
by `fill`. Recorded with paddlepaddle 3.3.1 (CPU) from `ppcls.arch.backbone` of PaddleClas (commit
d178931f, and paddleclas 2.6.0 for the classes that the first recording left out); no trained weight
is involved. `benchmarks/record_paddle.py` makes them anew.
"""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).parent / "paddle"
CLASSES = sorted(path.stem for path in RECORDED.glob("*.npz"))
INPUT = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, 224, 224)).astype("float32")


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name: it depends on name and shape alone."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if key.endswith("._variance"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if key.endswith("._mean"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 4:
        depthwise = shape[1] == 1 and "cheap_operation" not in key
        gain = 14.0 if depthwise else 1.1
        return (np.sqrt(gain / np.prod(shape[1:])) * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 2:
        return (np.sqrt(1.0 / shape[0]) * rng.standard_normal(shape)).astype(np.float32)
    if key.endswith((".weight", ".scale")):
        return rng.uniform(0.6, 1.0, shape).astype(np.float32)
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def logits(name: str) -> np.ndarray:
    """[2, 1000], what Paddle answered."""
    with np.load(RECORDED / f"{name}.npz") as recorded:
        return recorded["logits"]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the class's tensors, in Paddle's order."""
    with np.load(RECORDED / f"{name}.npz") as recorded:
        keys = json.loads(str(recorded["keys"]))
        return dict(zip(keys, map(tuple, json.loads(str(recorded["shapes"]))), strict=True))


def write_pdparams(name: str, path: Path, protocol: int = 2) -> Path:
    """The recorded weights as the file that Paddle would have written."""
    weights: dict[str, object] = {key: fill(key, shape) for key, shape in shapes(name).items()}
    weights["StructuredToParameterName@@"] = {key: key for key in weights}
    path.write_bytes(pickle.dumps(weights, protocol=protocol))
    return path
