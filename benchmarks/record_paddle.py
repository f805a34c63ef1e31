"""Record what PaddleClas answers for reproducible weights, as tests/zoo/paddle/CLASS.npz.

    pip install paddlepaddle==3.3.1 'setuptools<81' ftfy regex tqdm pyyaml
    pip install --no-deps paddleclas==2.6.0
    python benchmarks/record_paddle.py OUT ResNet50_vd       # in an environment of its own

One class a process, for Res2Net's parameter names clash otherwise. paddleclas' own `__init__` asks
for far more than its networks need, so its packages are entered without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))
import reference  # noqa: E402

MODULES = (
    ("MobileNetV1", "legendary_models.mobilenet_v1"),
    ("MobileNetV2", "model_zoo.mobilenet_v2"),
    ("MobileNetV3", "legendary_models.mobilenet_v3"),
    ("GhostNet", "model_zoo.ghostnet"),
    ("PPLCNetV2", "legendary_models.pp_lcnet_v2"),
    ("PPLCNet", "legendary_models.pp_lcnet"),
    ("ResNet", "legendary_models.resnet"),
    ("Res2Net", "model_zoo.res2net_vd"),
    ("PPHGNetV2", "legendary_models.pp_hgnet_v2"),
    ("PPHGNet", "legendary_models.pp_hgnet"),
    ("HRNet", "legendary_models.hrnet"),
    ("SE_HRNet", "legendary_models.hrnet"),
)


class _Anything(types.ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def enter_paddleclas() -> None:
    """Make `ppcls.arch.backbone.*` importable without running any `__init__`."""
    spec = importlib.util.find_spec("paddleclas")
    assert spec and spec.submodule_search_locations, "pip install --no-deps paddleclas"
    root = Path(next(iter(spec.submodule_search_locations)))
    inner = "ppcls.arch.backbone"
    families = (f"{inner}.legendary_models", f"{inner}.model_zoo")
    for name in ("ppcls", "ppcls.utils", "ppcls.arch", inner, *families):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[name] = package
    for name in ("ppcls.utils.save_load", "ppcls.utils.logger"):
        sys.modules[name] = _Anything(name)
    sys.modules["ppcls.utils"].logger = sys.modules["ppcls.utils.logger"]  # type: ignore[attr-defined]


def build(name: str):
    """The class, untrained."""
    module = next(module for start, module in MODULES if name.startswith(start))
    result = importlib.import_module(f"ppcls.arch.backbone.{module}")
    if name == "SE_HRNet_W64_C":  # its own function raises KeyError
        patterns = result.MODEL_STAGES_PATTERN["HRNet"]
        return result.HRNet(width=64, stages_pattern=patterns, has_se=True)
    return getattr(result, name)(pretrained=False)


def main() -> None:
    out, name = Path(sys.argv[1]), sys.argv[2]
    enter_paddleclas()
    import paddle  # type: ignore[import-not-found]

    paddle.set_device("cpu")
    network = build(name)
    network.eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    filled = {k: paddle.to_tensor(reference.fill(k, shape)) for k, shape in shapes.items()}
    network.set_state_dict(filled)
    with paddle.no_grad():
        logits = network(paddle.to_tensor(reference.INPUT)).numpy()
    out.mkdir(parents=True, exist_ok=True)
    keys, sizes = json.dumps(list(shapes)), json.dumps([list(x) for x in shapes.values()])
    np.savez_compressed(out / f"{name}.npz", logits=logits, keys=keys, shapes=sizes)


if __name__ == "__main__":
    main()
