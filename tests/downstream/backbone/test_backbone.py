"""The maps of a backbone are its classifier's own, frozen or not, synchronised or not; what is
frozen stays; learning rates go by part. Networks are small variants, images 64 x 96 px."""

from __future__ import annotations

import copy
import itertools
import json
import pickle

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.layers.norm_act import convert_sync_batchnorm
from timm.models.hrnet import cfg_cls
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from downstream.backbone.backbone import Backbone, describe, open_backbone, rebuild
from downstream.backbone.config import PRESETS, BackboneConfig
from ssld.common.errors import InputError
from ssld.models.sync_batch_norm import synchronise

SHALLOW = {"layers": [1, 1, 1, 1]}
LAYERS = ("layer1", "layer2", "layer3", "layer4")
STAGES = ("stages.0", "stages.1", "stages.2", "stages.3")
# name, arguments, modules of the classifier whose outputs are its maps of stride 4, 8, 16, 32
NETWORKS = [
    ("resnet50d_ssld", SHALLOW, LAYERS),
    ("resnet34d_ssld", SHALLOW, LAYERS),
    ("res2net50d", SHALLOW, LAYERS),
    ("mobilenetv1_100_ssld", {}, ("blocks.1", "blocks.2", "blocks.3", "blocks.4")),
    ("mobilenetv2_035", {}, ("blocks.1", "blocks.2", "blocks.4", "blocks.6")),
    ("mobilenetv3_small_035_ssld", {}, ("blocks.0", "blocks.1", "blocks.3", "blocks.5")),
    ("hrnet_w18_small", {}, ("stage4",)),
    ("se_hrnet_w64_ssld", cfg_cls["hrnet_w18_small"], ("stage4",)),
    ("test_convnext", {}, STAGES),
    ("test_efficientnet", {}, ("blocks.1", "blocks.2", "blocks.3", "blocks.4")),
    ("lcnet_025_ssld", {}, ("blocks.1", "blocks.2", "blocks.4", "blocks.5")),
    ("ghostnet_050", {}, ("blocks.1", "blocks.3", "blocks.5", "blocks.7")),
    ("hgnetv2_b0_ssld", {}, STAGES),
]


def _classifier(name: str, args: dict) -> nn.Module:
    """With statistics and scales of batch norm that are not those of the start."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **args).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def _hooked(model: nn.Module, modules: tuple[str, ...], x: torch.Tensor) -> list[torch.Tensor]:
    """What modules of a classifier give while it classifies."""
    maps: list[torch.Tensor] = []

    def keep(_, __, out) -> None:  # a copy: the next module may work in place
        maps.extend(m.clone() for m in (out if isinstance(out, list) else [out]))

    handles = [model.get_submodule(name).register_forward_hook(keep) for name in modules]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return maps


def _saved(model: nn.Module, path) -> str:
    save_file(model.state_dict(), path)
    return str(path)


def _maps(backbone: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return backbone(x)


@pytest.mark.parametrize(("name", "args", "modules"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_maps_are_the_classifiers_own(name, args, modules, tmp_path):
    classifier = _classifier(name, args)
    x = torch.randn(2, 3, 64, 96)
    expected = _hooked(classifier, modules, x)
    weights = _saved(classifier, tmp_path / "weights.safetensors")
    config = BackboneConfig(name, args=args, checkpoint=weights)
    backbone = open_backbone(config)  # in training mode, batch norm frozen

    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.channels == tuple(m.shape[1] for m in expected)
    sizes = [(64 // s, 96 // s) for s in backbone.strides]
    assert [tuple(m.shape[-2:]) for m in expected] == sizes
    for wrapped in (
        backbone,
        backbone.eval(),
        open_backbone(
            BackboneConfig(name, args, checkpoint=weights, freeze_batch_norm=False)
        ).eval(),
        pickle.loads(pickle.dumps(backbone)),
        copy.deepcopy(backbone),
        synchronise(copy.deepcopy(backbone).train(), torch.device("cpu")),
    ):
        torch.testing.assert_close(_maps(wrapped, x), expected, rtol=0, atol=0)
    synchronised = convert_sync_batchnorm(copy.deepcopy(backbone)).train()
    kinds = {type(m).__name__ for m in synchronised.modules() if isinstance(m, _BatchNorm)}
    assert kinds <= {"SyncBatchNorm", "SyncBatchNormAct"} and (kinds or name == "test_convnext")
    torch.testing.assert_close(_maps(synchronised, x), expected, rtol=1e-5, atol=1e-5)

    own = {f"model.{key}" for key in classifier.state_dict()}
    assert set(backbone.state_dict()) < own
    again = rebuild(json.loads(json.dumps(describe(backbone))))
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(_maps(again, x), expected, rtol=0, atol=0)


def test_torchs_own_conversion_would_be_noticed(tmp_path):
    """It drops the activations inside MobileNet's norms (facts/downstream.md, trap 3)."""
    name, args, modules = NETWORKS[3]
    classifier = _classifier(name, args)
    x = torch.randn(1, 3, 64, 96)
    expected = _hooked(classifier, modules, x)
    weights = _saved(classifier, tmp_path / "weights.safetensors")
    backbone = open_backbone(BackboneConfig(name, args=args, checkpoint=weights))
    damaged = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(_maps(damaged, x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("name", "args"), [n[:2] for n in NETWORKS], ids=[n[0] for n in NETWORKS])
def test_every_parameter_is_in_reach_and_has_a_part(name, args):
    """With a gradient each, so that several processes need not look for unused ones; from stem to
    stage 4 no part is empty, and parts never fall from one map to the next."""
    backbone = open_backbone(BackboneConfig(name, args, pretrained=False))
    assert not backbone.pretrained and not backbone.distilled
    torch.stack([m.sum() for m in backbone(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []
    parts = [backbone.part(key) for key, _ in backbone.named_parameters()]
    assert set(parts) == {0, 1, 2, 3, 4}
    if "hrnet" not in name:  # whose transitions are registered before their stage
        assert parts == sorted(parts)


def test_some_maps_only_and_nothing_trains_in_vain():
    resnet = open_backbone(BackboneConfig("test_resnet", pretrained=False), strides=(4, 16))
    assert (resnet.strides, resnet.channels) == ((4, 16), (32, 192))
    assert not [key for key in resnet.state_dict() if "layer4" in key or "fc" in key]
    hrnet = open_backbone(BackboneConfig("hrnet_w18_small", pretrained=False), strides=(2, 32))
    assert (hrnet.strides, hrnet.channels) == ((2, 32), (64, 128))
    torch.stack([m.sum() for m in hrnet(torch.randn(2, 3, 64, 64))]).sum().backward()
    trained = [p for p in hrnet.parameters() if p.requires_grad]
    assert len(trained) < len(list(hrnet.parameters()))
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        ("test_vit", {"strides": (3, 6)}, "has one map, of stride 16, from which none of stride 3"),
        ("hgnetv2_b0", {"strides": (2, 4)}, "of stride 4, 8, 16, 32, not of 2: choose"),
        ("hrnet_w18_small", {"output_stride": 8}, "no dilation to output stride 8"),
        ("hgnetv2_b0", {"output_stride": 16}, "no dilation to output stride 16"),
    ],
)
def test_what_a_network_does_not_have_is_one_sentence(name, wanted, said):
    with pytest.raises(InputError, match=said) as error:
        open_backbone(BackboneConfig(name, pretrained=False), **wanted)
    assert name in str(error.value)


def test_images_of_another_number_of_channels_are_refused():
    config = BackboneConfig("test_resnet", {"in_chans": 1}, pretrained=False)
    with pytest.raises(InputError, match="does not run on images .* to have 1 channels, but got 3"):
        open_backbone(config)


@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_maps_have_the_strided_ones_among_them(tmp_path, stride):
    """A dilated filter on all pixels is the strided one on every other (the a trous algorithm);
    at the border both see zeros. ResNet-D's 2x2 mean before a shortcut has no dilation."""
    plain = {"avg_down": False}
    classifier = _classifier("test_resnet", plain)
    weights = _saved(classifier, tmp_path / "weights.safetensors")
    config = BackboneConfig("test_resnet", plain, checkpoint=weights)
    strided, dilated = open_backbone(config), open_backbone(config, output_stride=stride)
    assert dilated.strides == tuple(min(s, stride) for s in strided.strides)
    assert dilated.channels == strided.channels
    x = torch.randn(1, 3, 128, 128)
    again = rebuild(json.loads(json.dumps(describe(dilated))))
    again.load_state_dict(dilated.state_dict())
    for network in (dilated, again):
        for few, many, was in zip(
            _maps(strided, x), _maps(network, x), strided.strides, strict=True
        ):
            step = max(1, was // stride)
            assert many.shape[-1] == 128 // min(was, stride)
            torch.testing.assert_close(many[..., ::step, ::step], few, rtol=1e-4, atol=1e-4)


def _train(backbone: Backbone, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1, weight_decay=0.1)
    for _ in range(steps):
        backbone.train()
        optimizer.zero_grad()
        torch.stack(
            [m.square().mean() for m in backbone(torch.randn(4, 3, 64, 64))]
        ).sum().backward()
        optimizer.step()


def _changed(before: dict, backbone: Backbone) -> set[str]:
    return {key for key, x in backbone.state_dict().items() if not torch.equal(x, before[key])}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "hgnetv2_b0_ssld"])
@pytest.mark.parametrize(("frozen", "stages"), [(True, 0), (True, 2), (False, 2), (False, 0)])
def test_what_is_frozen_stays_to_the_bit(tmp_path, name, frozen, stages):
    weights = _saved(_classifier(name, {}), tmp_path / "weights.safetensors")
    config = BackboneConfig(
        name, checkpoint=weights, freeze_batch_norm=frozen, frozen_stages=stages
    )
    backbone = open_backbone(config)
    norms = [key for key, m in backbone.named_modules() if isinstance(m, _BatchNorm)]
    own = (f"{a}.{b}" for a, b in itertools.product(norms, ("weight", "bias")))
    stats = ("running_mean", "running_var", "num_batches_tracked")
    buffers = {f"{a}.{b}" for a, b in itertools.product(norms, stats)}
    still = (set(own) | buffers) if frozen else set()
    still |= {key for key, _ in backbone.named_parameters() if backbone.part(key) < stages}
    still |= {key for key in buffers if backbone.part(key.rpartition(".")[0] + ".weight") < stages}
    before = {key: x.clone() for key, x in backbone.state_dict().items()}
    _train(backbone)
    assert _changed(before, backbone) == set(before) - still
    assert norms and (still or not (frozen or stages))


def test_frozen_stages_drop_nothing(tmp_path):
    weights = _saved(_classifier("test_resnet", {}), tmp_path / "weights.safetensors")
    args = {"drop_path_rate": 0.5}
    backbone = open_backbone(
        BackboneConfig("test_resnet", args, checkpoint=weights, frozen_stages=5)
    )
    x = torch.randn(8, 3, 64, 64)
    torch.testing.assert_close(
        _maps(backbone.train(), x), _maps(backbone.eval(), x), rtol=0, atol=0
    )
    other = open_backbone(BackboneConfig("test_resnet", args, checkpoint=weights))
    assert not torch.equal(_maps(other.train(), x)[-1], _maps(other.eval(), x)[-1])


def test_random_weights_train_their_batch_norm():
    for config in (
        lambda: BackboneConfig("test_resnet", pretrained=False, freeze_batch_norm=True),
        lambda: BackboneConfig("test_resnet", pretrained=False, frozen_stages=1),
        lambda: BackboneConfig("test_resnet", frozen_stages=6),
        lambda: BackboneConfig("test_resnet", lr=[1.0, 0.5]),
        lambda: BackboneConfig("test_resnet", args={"features_only": True}),
    ):
        with pytest.raises(ValueError, match=r"^backbone\.\w+"):
            config()
    backbone = open_backbone(BackboneConfig("test_resnet", pretrained=False))
    before = {key: x.clone() for key, x in backbone.state_dict().items()}
    _train(backbone)
    assert _changed(before, backbone) == set(before)


def test_synchronised_batch_norm_leaves_frozen_norms_alone(tmp_path):
    """One process of a real group: statistics over all processes are then those of plain norms."""
    weights = _saved(_classifier("test_efficientnet", {}), tmp_path / "weights.safetensors")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for frozen in (True, False):
            config = BackboneConfig(
                "test_efficientnet", checkpoint=weights, freeze_batch_norm=frozen
            )
            plain = open_backbone(config)
            shared = synchronise(copy.deepcopy(plain), torch.device("cpu"))
            x = torch.randn(4, 3, 64, 64)
            for mode in (True, False):
                ours, theirs = shared.train(mode)(x), plain.train(mode)(x)
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
            before = torch.load(_state(open_backbone(config), tmp_path))
            kept = all(torch.equal(v, before[k]) for k, v in shared.state_dict().items())
            assert kept == frozen
    finally:
        dist.destroy_process_group()


def _state(backbone: Backbone, folder):
    torch.save(backbone.state_dict(), folder / "state.pt")
    return folder / "state.pt"


def test_a_resnets_learning_rates_are_the_published_ones():
    config = BackboneConfig("resnet50d_ssld", SHALLOW, pretrained=False, lr="tuned")
    backbone = open_backbone(config)
    detection, transfer = backbone.lr_scales(), backbone.lr_scales("transfer")
    assert set(detection) == {key for key, _ in backbone.named_parameters()} == set(transfer)
    for key, low, high in (
        ("conv1.0.weight", 0.05, 0.1),
        ("bn1.bias", 0.05, 0.1),
        ("layer1.0.conv1.weight", 0.05, 0.1),
        ("layer2.0.bn1.weight", 0.1, 0.2),
        ("layer3.0.downsample.1.weight", 0.1, 0.2),
        ("layer4.0.conv3.weight", 0.15, 0.3),
    ):
        assert (detection[f"model.{key}"], transfer[f"model.{key}"]) == (low, high)
    assert set(backbone.lr_scales("segmentation").values()) <= set(PRESETS["segmentation"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hrnet_w18_small", {0: "conv2", 1: "layer1", 2: "stage2", 3: "transition3", 4: "stage4"}),
        ("test_convnext", {0: "stem", 1: "stages.0", 2: "stages.1", 3: "stages.2", 4: "stages.3"}),
        ("hgnetv2_b0", {0: "stem", 1: "stages.0", 4: "stages.3"}),
        # eight groups, the stem and blocks 0 to 6: 4 i / 7 rounded
        ("mobilenetv2_035", {0: "conv_stem", 1: "blocks.1", 2: "blocks.2", 3: "blocks.5"}),
        ("mobilenetv2_035", {0: "bn1", 1: "blocks.0", 2: "blocks.3", 3: "blocks.4", 4: "blocks.6"}),
    ],
)
def test_other_networks_parts(name, parts):
    config = BackboneConfig(name, pretrained=False, lr=[1.0, 2.0, 3.0, 4.0, 5.0])
    scales = open_backbone(config).lr_scales()
    for part, start in parts.items():
        found = {v for k, v in scales.items() if k.startswith(f"model.{start}.")}
        assert found == {part + 1.0}, start


def test_the_same_learning_rate_unless_tuned_or_distilled():
    for lr, distilled in (("auto", False), ("same", True)):
        backbone = open_backbone(BackboneConfig("test_resnet", pretrained=False, lr=lr))
        again = rebuild({**describe(backbone), "distilled": distilled})
        assert set(again.lr_scales().values()) == {1.0} and not again.tuned()
    auto = rebuild({**describe(backbone), "lr": "auto", "distilled": True})
    assert auto.tuned() and set(auto.lr_scales().values()) == set(PRESETS["detection"])


def test_attention_is_the_same_with_and_without_the_head():
    """It has another kernel where no gradient is asked for, with other last digits."""
    assert open_backbone(BackboneConfig("test_coatnet", pretrained=False)).channels[0] == 32


def test_a_network_whose_stages_timm_does_not_know():
    backbone = open_backbone(BackboneConfig("poolformer_s12", pretrained=False))
    assert set(backbone.lr_scales().values()) == {1.0}
    for other in ({"lr": "tuned"}, {"frozen_stages": 1}):
        with pytest.raises(InputError, match="does not know the stages of backbone poolformer_s12"):
            rebuild({**describe(backbone), **other}).lr_scales()


def test_a_description_that_is_damaged():
    description = describe(open_backbone(BackboneConfig("test_resnet", pretrained=False)))
    short = {k: v for k, v in description.items() if k != "mean"}
    with pytest.raises(InputError, match=r"missing or unknown keys \(mean\)"):
        rebuild(short)
    with pytest.raises(InputError, match="did you mean"):
        rebuild({**description, "architecture": "test_resnett"})


def test_opening_draws_no_random_number_once_built(tmp_path):
    """The heads that come after get the same weights whatever the backbone's checks do."""
    weights = _saved(_classifier("test_resnet", {}), tmp_path / "weights.safetensors")
    states = []
    for strides in ((4, 8, 16, 32), (8,)):
        torch.manual_seed(5)
        open_backbone(BackboneConfig("test_resnet", checkpoint=weights), strides=strides)
        states.append(torch.get_rng_state())
    torch.manual_seed(5)
    timm.create_model("test_resnet", num_classes=10)
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], torch.get_rng_state())


def test_torchvisions_pyramid_and_heads_take_the_maps():
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.ops import FeaturePyramidNetwork

    backbone = open_backbone(BackboneConfig("test_resnet", pretrained=False), strides=(8, 16, 32))
    pyramid = FeaturePyramidNetwork(list(backbone.channels), 16)
    maps = backbone(torch.randn(2, 3, 64, 96))
    levels = list(pyramid(dict(zip("345", maps, strict=True))).values())
    out = RetinaNetHead(16, 9, 4)(levels)
    assert out["cls_logits"].shape == (2, 9 * (8 * 12 + 4 * 6 + 2 * 3), 4)
    out["cls_logits"].sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
