"""DETR against transformers' own complete model, whose pieces it is made of."""

from __future__ import annotations

import copy

import pytest
import torch
from overfit import PlainBackbone, overfit, pictures, whole
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.models.detr.modeling_detr import replace_batch_norm

from downstream.backbone.backbone import Backbone, open_backbone
from downstream.backbone.config import BackboneConfig
from downstream.detection.heads.detr import DETR

SMALL = {"num_queries": 7, "width": 32, "layers": 3, "heads": 2, "ffn_width": 48, "dropout": 0.0}


def make(backbone: nn.Module | None = None, seed: int = 0, **args) -> DETR:
    torch.manual_seed(seed)
    return DETR(backbone or PlainBackbone((32,)), 3, **{**SMALL, **args})


def padded_batch() -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Two images of 128 px, the second 96 x 40 with padding."""
    images, targets = pictures(128, count=2)
    targets[1]["boxes"] = targets[1]["boxes"] * 0.3
    images[1, :, 96:], images[1, :, :, 40:] = 0, 0
    return images, torch.tensor([[128, 128], [96, 40]]), targets


class Maps(nn.Module):
    """transformers' own convolutional encoder as one of our backbones."""

    strides, channels = (32,), (24,)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.model(x).feature_maps)


def transformers_model() -> tuple[DetrForObjectDetection, DETR]:
    """transformers' whole model, and ours with its weights."""
    torch.manual_seed(0)
    resnet = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = DetrConfig(
        backbone_config=resnet,
        num_labels=3,
        num_queries=7,
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        dropout=0.0,
    )
    theirs = DetrForObjectDetection(config).eval()
    for name, weight in theirs.named_parameters():
        if weight.dim() > 1 and "backbone" not in name:
            nn.init.normal_(weight, std=0.2)  # as they initialise, all queries are nearly alike
    ours = make(Maps(theirs.model.backbone.model)).eval()
    weights = {k.removeprefix("model."): v for k, v in theirs.state_dict().items()}
    weights = {k.replace("backbone.model.", "backbone."): v for k, v in weights.items()}
    own = {k: v for k, v in ours.state_dict().items() if k.startswith(("criterion", "backbone"))}
    ours.load_state_dict({k: v for k, v in weights.items() if "backbone" not in k} | own)
    return theirs, ours


def relative(targets: list[dict[str, Tensor]], sizes: Tensor) -> list[dict[str, Tensor]]:
    """transformers' labels, written out."""
    labels = []
    for target, (h, w) in zip(targets, sizes.tolist(), strict=True):
        rows = [
            [(x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h]
            for x1, y1, x2, y2 in target["boxes"].tolist()
        ]
        labels.append({"boxes": torch.tensor(rows), "class_labels": target["labels"]})
    return labels


def test_losses_and_detections_are_those_of_transformers() -> None:
    theirs, ours = transformers_model()
    images, sizes, targets = padded_batch()
    mask = torch.zeros(2, 128, 128, dtype=torch.int64)
    for i, (h, w) in enumerate(sizes.tolist()):
        mask[i, :h, :w] = 1
    labels = relative(targets, sizes)
    with torch.no_grad():
        expected = theirs(images, pixel_mask=mask, labels=labels)
        losses = ours(images, sizes, targets)
        found = ours(images, sizes)
    torch.testing.assert_close(losses["classification"].mean(), expected.loss_dict["loss_ce"])
    torch.testing.assert_close(losses["boxes"].mean(), 5 * expected.loss_dict["loss_bbox"])
    torch.testing.assert_close(losses["giou"].mean(), 2 * expected.loss_dict["loss_giou"])

    for i, (h, w) in enumerate(sizes.tolist()):
        scores = expected.logits[i].softmax(-1)[:, :3]
        order = scores.max(1).values.argsort(descending=True)
        torch.testing.assert_close(found[i]["scores"], scores.max(1).values[order])
        assert torch.equal(found[i]["labels"], scores.argmax(1)[order])
        cx, cy, bw, bh = expected.pred_boxes[i][order].unbind(1)
        corners = torch.stack(
            [
                ((cx - bw / 2) * w).clamp(0, w),
                ((cy - bh / 2) * h).clamp(0, h),
                ((cx + bw / 2) * w).clamp(0, w),
                ((cy + bh / 2) * h).clamp(0, h),
            ],
            dim=1,
        )
        torch.testing.assert_close(found[i]["boxes"], corners)


def test_auxiliary_is_the_loss_of_all_decoder_layers_but_the_last() -> None:
    theirs, ours = transformers_model()
    images, sizes, targets = padded_batch()
    with torch.no_grad():
        losses = ours(images, sizes, targets)
        states = ours._states(images, sizes)
        logits = ours.class_labels_classifier(states)
        boxes = ours.bbox_predictor(states).sigmoid()
        theirs.config.auxiliary_loss = True
        total, _, layers = ForObjectDetectionLoss(
            logits[-1],
            relative(targets, sizes),
            images.device,
            boxes[-1],
            theirs.config,
            logits,
            boxes,
        )
    assert len(layers) == 2
    torch.testing.assert_close(sum(losses.values()).mean(), total)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_b0", "test_resnet"])
def test_the_backbone_keeps_its_activations(name: str) -> None:
    """What reaches the transformer is the classifier's own map; what transformers makes of such a
    backbone is not."""
    torch.manual_seed(0)
    config = BackboneConfig(name, pretrained=False)
    backbone: Backbone = open_backbone(config, strides=(32,))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    classifier = copy.deepcopy(backbone.model).eval()
    network = make(backbone).eval()
    reached = []
    network.input_projection.register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    images, sizes, targets = padded_batch()
    with torch.no_grad():
        network(images, sizes, targets)
        own = classifier.forward_intermediates(
            images, indices=backbone.indices, intermediates_only=True
        )[0]
        replace_batch_norm(classifier)
        bare = classifier.forward_intermediates(
            images, indices=backbone.indices, intermediates_only=True
        )[0]
    assert torch.equal(reached[0], own)
    kept = torch.allclose(bare, own, rtol=1e-3, atol=1e-4)
    assert kept == (name == "test_resnet"), "transformers was mended, or the case shows nothing"


@pytest.mark.parametrize("training", [True, False])
def test_without_any_box_losses_and_gradients_are_finite(training: bool) -> None:
    network = make().train(training)
    images, sizes, _ = padded_batch()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = network(images, sizes, [empty, empty])
    assert losses.keys() == {"classification", "boxes", "giou", "auxiliary"}
    assert (losses["boxes"] == 0).all() and (losses["giou"] == 0).all()
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_boxes_that_are_not_numbers_give_a_loss_that_is_none() -> None:
    network = make()
    network.bbox_predictor.layers[-1].bias.data.fill_(torch.nan)
    images, targets = pictures(64, count=2)
    assert network(images, whole(images), targets)["boxes"].isnan().all()


def test_two_processes_are_worth_one_with_twice_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each divides by the mean of both numbers of boxes, in training; alone in evaluation."""
    network = make()
    like = torch.zeros(1)
    mine = [{"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(2, 4)}]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(4))
    assert network._boxes_per_process(mine, like) == 4.5
    assert network.eval()._boxes_per_process(mine, like) == 5


def test_what_is_found_lies_in_the_picture_best_first() -> None:
    network = make(num_queries=120).train()
    images, sizes, _ = padded_batch()
    for found, (h, w) in zip(network(images, sizes), sizes.tolist(), strict=True):
        assert 0 < len(found["labels"]) <= 100
        assert (found["scores"].diff() <= 0).all()
        assert found["boxes"].min() >= 0
        assert (found["boxes"] <= torch.tensor([w, h, w, h])).all()


def test_autocast_leaves_losses_and_boxes_in_float32() -> None:
    network = make()
    images, targets = pictures(64, count=2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images, whole(images), targets)
        found = network(images, whole(images))[0]
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in losses.values())
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_detr_overfits_four_images() -> None:
    network = make(num_queries=8, width=64, layers=2, heads=4, ffn_width=128)
    assert overfit(network, size=128, steps=300, lr=1e-3, clip=1.0)[0] > 0.95
