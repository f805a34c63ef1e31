"""torchvision's files whose tensors timm calls otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from ssld.common.errors import InputError
from ssld.models.opening import check_fit, open_network

VIT: dict[str, Any] = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 1}


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    vit = models.VisionTransformer(**VIT, hidden_dim=8, mlp_dim=8)
    return {
        "efficientnet_b0": models.efficientnet_b0(num_classes=3).state_dict(),
        "vit_tiny_patch16_224": vit.state_dict(),
    }


@pytest.mark.parametrize("arch", ["efficientnet_b0", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("kind", ["torch.save", "module.", "safetensors"])
def test_whose_they_are_and_what_to_do(tmp_path, weights, arch, kind):
    file = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(weights[arch], file)
    else:
        start = "module." if kind == "module." else ""
        torch.save({f"{start}{name}": x for name, x in weights[arch].items()}, file)
    with pytest.raises(InputError) as refused:
        open_network("teacher", arch=arch, checkpoint=str(file))
    said = str(refused.value)
    assert said.startswith("teacher.checkpoint") and said.count("\n") == 0
    assert "is torchvision's own network" in said and "set `pretrained`" in said


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_efficientnet"])
def test_files_of_others_are_not_called_torchvisions(arch):
    expected = timm.create_model(arch).state_dict()
    check_fit(expected, expected, "x.pth")
    others = {f"features.{name}": x for name, x in expected.items()}
    with pytest.raises(InputError, match="does not fit the architecture: tensors"):
        check_fit(expected, others, "x.pth")
