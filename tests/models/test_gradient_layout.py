"""Two processes reduce gradients as they come: no warning, no copy of each."""

from __future__ import annotations

import warnings

import pytest
import sabotage
import short_runs
import timm
import torch
from safetensors.torch import load_file

from ssld.models.classifier import as_images_lie


def warnings_are_errors() -> None:
    """Of torch's own the one that it gives once a process, in C++, is said as any other."""
    warnings.filterwarnings("error", ".*[Ss]trides.*")


def trained(colours, teacher_file, folder, **changes) -> list[sabotage.Started]:
    given = short_runs.words(colours, teacher_file, folder / "run", steps=3, **changes)
    words = ["distill", *given]
    started = sabotage.ranks(words, folder / "said", [[warnings_are_errors]] * 2)
    for process in started:
        process.end()
    return started


@pytest.mark.parametrize(
    ("arch", "precision", "channels_last"),
    [
        ("mobilenetv3_small_050", "fp32", "false"),  # depthwise, squeeze and excite
        ("test_resnet", "bf16", "false"),  # 1 x 1
        ("test_resnet", "bf16", "true"),
        ("test_convnext", "fp32", "true"),
    ],
)
def test_gradients_lie_as_buckets_do(
    colours, teacher_file, tmp_path, arch, precision, channels_last
):
    changes = {"precision": precision, "channels_last": channels_last, "student.arch": arch}
    started = trained(colours, teacher_file, tmp_path, **changes)
    for process in started:
        assert process.process.exitcode == 0, process.words[-2000:]
        assert "strides" not in process.words
    assert load_file(tmp_path / "run/student/model.safetensors")


def test_no_weight_changes_its_value_or_is_moved():
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    answer = model.eval()(x)
    as_images_lie(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.data_ptr() == places[name], name
        assert p.is_contiguous()
    torch.testing.assert_close(model(x), answer)
