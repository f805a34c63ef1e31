"""Exported folders and weights files of strangers: what they say of their network is checked in
one place, before timm sees it, for every command."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf

from downstream.backbone.config import BackboneConfig
from downstream.backbone.weights import open_classifier
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.models.opening import open_network
from zoo.release import seal


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """As timm and ssld write it: three classes, 32 px."""
    folder = tmp_path_factory.mktemp("exported") / "net"
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    names = {"label_names": ["blue", "green", "red"]}
    data = {"input_size": (3, 32, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}
    save_config_for_hf(model, str(folder / "config.json"), names, data_config=data)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "net"))


def changed(folder: Path, changes: dict[str, Any]) -> Path:
    """With other entries, of `pretrained_cfg` where the key begins with a dot; `...` takes out."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for key, value in changes.items():
        place = content["pretrained_cfg"] if key.startswith(".") else content
        place.pop(key.lstrip("."), None)
        if value is not ...:
            place[key.lstrip(".")] = value
    file.write_text(json.dumps(content))
    return folder


NAN, HUGE = float("nan"), 10**9
WRONG: list[dict[str, Any]] = [
    *({"architecture": x} for x in (..., None, 5, [], "", "../x", "a b", "x" * 300, "resnet\n")),
    *({"pretrained_cfg": x} for x in (None, [], 5, "x", [{}], True)),
    *({"model_args": x} for x in (5, "x", [1], {"checkpoint_path": "/etc/passwd"},
       {"pretrained": True}, {"cache_dir": "/tmp"}, {"pretrained_cfg": {"file": "x"}},
       {"features_only": True}, {"device": "cuda:9"}, {"a.b": 1}, {"a" * 99: 1}, {"": 1},
       {"stem_width": HUGE}, {"stem_width": NAN}, {"channels": [9] * 999}, {"num_classes": 1e99},
       {"num_classes": 5},
       {"block_args": {"a": {"b": {"c": {"d": 1}}}}}, {"layers": [HUGE, 1, 1, 1]})),
    *({".input_size": x} for x in ([3, 0, 0], [3, 32], 32, "3,32,32", [1, 32, 32], [3, -1, 32],
       [3, 32, HUGE], [3, 32.5, 32], [3, None, 32], [3, True, 32], {}, [[3, 32, 32]])),
    *({".mean": x} for x in (0.5, [0.5], [0.5] * 4, [NAN, 0, 0], ["a", "b", "c"], "0", [None] * 3,
       [float("inf"), 0, 0], {"a": 1}, [1e9, 0, 0])),
    *({".std": x} for x in (0, [0, 0, 0], [0.2, 0.2, 0], [-0.2, 0.2, 0.2], [NAN] * 3, [1e-30] * 3)),
    *({".crop_pct": x} for x in (NAN, 0, -1, 1e-4, 2.5, 1e9, "0.9", [0.9], True, float("inf"))),
    *({".test_crop_pct": x} for x in (NAN, 1e-9)),
    *({".interpolation": x} for x in ("unknown", 5, "", ["bicubic"], "lanczos", "random")),
    *({".crop_mode": x} for x in ("unknown", 5, "", [], "centre")),
    *({"label_names": x} for x in ("abc", [1, 2, 3], ["a"], ["a"] * 4, {"0": "a"}, [["a"]] * 3)),
    *({"num_classes": x} for x in (-1, "3", 3.5, NAN, 10**12, [3])),
    {".license": 5}, {".tag": []}, {".custom_load": "yes"}, {".state_dict": {}},
    {".fixed_input_size": "yes"}, {".pool_size": [0, 0]}, {".first_conv": 5}, {".classifier": {}},
    {".file": ["x"]}, {".license": "\ud800"}, {"label_names": ["a", "b", "\udfff"]},
    {"model_args": {"act_layer": "\ud800"}}, {".url": 7},
]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG, ids=[str(x)[:60] for x in WRONG])
def test_what_no_network_can_have_is_one_sentence(folder: Path, changes: dict[str, Any]):
    changed(folder, changes)
    said = set()
    for names in ({"checkpoint": str(folder)}, {"pretrained": True}):
        arch = None if "checkpoint" in names else f"local-dir:{folder}"
        with pytest.raises(InputError) as error:
            open_network("teacher", arch=arch, **names)  # type: ignore[arg-type]
        said.add(str(error.value))
    assert all(str(folder) in x and x.isprintable() and len(x) < 600 for x in said)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"null", b"[1]", b'"x"', b"5", b"{", b"{}", b"[" * 99999, b"9" * 5000,
     b'{"architecture": "test_resnet", "pretrained_cfg": ' + b"[" * 99999,
     *(b'{"architecture": %s5%s}' % (b"[" * n, b"]" * n) for n in (900, 960, 980, 990))],
    ids=lambda content: str(content[:30]),
)  # fmt: skip
def test_a_config_that_is_none_is_one_sentence(folder: Path, content: bytes):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json") as error:
        open_network("model", arch=None, checkpoint=str(folder))
    assert str(error.value).isprintable() and len(str(error.value)) < 600


RIGHT: list[dict[str, Any]] = [
    {}, {"model_args": None}, {"model_args": {}}, {"model_args": {"drop_rate": 0.1}},
    {"model_args": {"act_layer": "relu", "block_args": {"attn_layer": None}}},
    {".crop_pct": None}, {".crop_pct": 1}, {".crop_pct": 1.15}, {".crop_mode": "squash"},
    {".mean": [0, 0, 0]},
    {".std": [1, 1, 1]}, {".interpolation": "bilinear"}, {".license": None}, {".tag": None},
    {".paper_ids": ["a", "b"]}, {".notes": ["a"]}, {".pool_size": None}, {".first_conv": ["conv1"]},
    {"label_names": None}, {".a_key_of_a_later_timm": {"any": 1}}, {".crop_mode": ...},
    {"num_features": 99}, {"global_pool": "avg"},
]  # fmt: skip


@pytest.mark.parametrize("changes", RIGHT, ids=[str(x)[:60] for x in RIGHT])
def test_what_timm_and_others_write_is_taken(folder: Path, changes: dict[str, Any]):
    network = open_network("model", arch=None, checkpoint=str(changed(folder, changes)))
    assert network.num_classes == 3
    crop = changes.get(".crop_mode", "center")
    assert network.crop_mode == ("center" if crop is ... else crop)


def test_the_older_layout_of_timm_is_read_too(folder: Path):
    """Without `pretrained_cfg`, and `labels`: mean and std were silently timm's default before."""
    content = json.loads((folder / "config.json").read_text())
    flat = {"architecture": "test_resnet", **content["pretrained_cfg"]}
    flat |= {"labels": ["a", "b", "c"], "mean": [0.1, 0.2, 0.3]}
    (folder / "config.json").write_text(json.dumps(flat))
    network = open_network("model", arch=None, checkpoint=str(folder))
    assert network.mean == (0.1, 0.2, 0.3) and network.label_names == ["a", "b", "c"]


def test_every_entry_of_timms_own_registry_is_taken(tmp_path: Path):
    from timm.models._registry import _model_pretrained_cfgs as registry

    from zoo.described import read_config

    for name, cfg in list(registry.items())[::40]:
        content = {"architecture": name, "pretrained_cfg": cfg.to_dict()}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_config(tmp_path / "config.json").architecture == name


HEADERS = [
    ("mean", ""), ("mean", "a,b,c"), ("mean", "0.5"), ("mean", "nan,0,0"), ("std", "0,0,0"),
    ("std", "0.2,0.2"), ("input_size", "x"), ("input_size", "0"), ("input_size", "3,9999999,9"),
    ("input_size", "9" * 5000), ("model_args", "{"), ("model_args", "[1]"), ("model_args", "5"),
    ("model_args", '{"checkpoint_path": "/etc/passwd"}'), ("model_args", "[" * 99999),
    ("model_args", '{"stem_width": 1e400}'), ("interpolation", "unknown"), ("architecture", ""),
    ("architecture", "../x"), ("architecture", "no_such_network"), ("crop_mode", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), HEADERS, ids=[f"{k} {v}"[:40] for k, v in HEADERS])
def test_headers_of_weights_files_are_checked_likewise(exported, tmp_path, key, value):
    header = {"architecture": "test_resnet", "input_size": "[32]", key: value}
    file = tmp_path / "net.safetensors"
    save_file(load_file(exported / "model.safetensors"), file, header)
    with pytest.raises(InputError) as error:
        open_network("student", arch=None, checkpoint=str(file))
    assert str(error.value).isprintable() and len(str(error.value)) < 600


def test_arguments_are_compared_with_the_weights_before_memory_is_taken(folder: Path):
    """Width 8,192 would take 40 GB in this network."""
    changed(folder, {"model_args": {"channels": [8192] * 4, "stem_width": 8192}})
    with pytest.raises(InputError, match="does not fit the architecture"):
        open_network("model", arch=None, checkpoint=str(folder))
    with pytest.raises(InputError, match="a network of .* parameters, but model.safetensors has"):
        open_network("model", arch=f"local-dir:{folder}", pretrained=True)


def test_weights_that_timm_loads_are_looked_at_too(folder: Path):
    """Else a run that starts from them blames its learning rate."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["fc.weight"][0, 3] = NAN
    save_file(weights, file)
    with pytest.raises(InputError, match="is not finite; give other weights"):
        open_network("student", arch=f"local-dir:{folder}", pretrained=True)
    assert open_network("student", arch=f"local-dir:{folder}")  # random weights are asked for


def test_a_file_in_place_of_a_name_is_told_its_place(folder: Path):
    with pytest.raises(InputError, match="is a file: give it as checkpoint"):
        open_network("student", arch=str(folder / "model.safetensors"))


def test_a_new_classifier_has_no_names_of_the_old_one(folder: Path):
    for names in ({"arch": None, "checkpoint": str(folder)},
                  {"arch": f"local-dir:{folder}", "pretrained": True}):  # fmt: skip
        network = open_network("student", num_classes=5, **names)  # type: ignore[arg-type]
        assert network.num_classes == 5 and network.label_names is None


@pytest.mark.parametrize("std", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (NAN, 1.0, 1.0)])
def test_a_std_in_the_settings_is_checked_likewise(folder: Path, std):
    with pytest.raises(InputError, match="std above 0"):
        open_network("teacher", arch=None, checkpoint=str(folder), std=std)


def refused(code: int, told: str, folder: Path) -> None:
    *before, said = told.splitlines()
    assert code == 2 and said.startswith("error: "), told
    assert all(line.endswith(" images, no labels") for line in before), told
    assert "std is [0, 0, 0]" in said and str(folder) in said


def test_every_command_says_it(folder: Path, tmp_path: Path, colours: Path, capsys):
    changed(folder, {".std": [0, 0, 0]})
    data = str(colours / "val")
    for argv in ([str(folder)], [f"local-dir:{folder}"]):
        code = main(["evaluate", "--model", *argv, "--data", data])
        refused(code, capsys.readouterr().err, folder)
    out = tmp_path / "out"
    run = ["--data.unlabeled", str(colours / "unlabeled"), "--out", str(out)]
    run += ["--student.arch", "test_resnet", "--steps", "1", "--batch_size", "4"]
    for named in ("teacher.checkpoint", "teacher.arch"):
        value = str(folder) if named.endswith("checkpoint") else f"local-dir:{folder}"
        refused(main(["distill", *run, f"--{named}", value]), capsys.readouterr().err, folder)
    for command in ("publish", "export"):
        more = ["--to", str(out)] if command == "publish" else ["--format", "torchscript",
                                                                "--out", str(out)]  # fmt: skip
        refused(main(["zoo", command, str(folder), *more]), capsys.readouterr().err, folder)
    seal(folder, {"name": "net"})
    refused(main(["zoo", "verify", str(folder)]), capsys.readouterr().err, folder)
    refused(
        main(["zoo", "publish", str(folder), "--to", str(out)]), capsys.readouterr().err, folder
    )
    assert not out.exists()
    for config in (BackboneConfig(checkpoint=str(folder)), BackboneConfig(f"local-dir:{folder}")):
        with pytest.raises(InputError, match="backbone: .*std is"):
            open_classifier(config)


# weights files


def test_damaged_weights_files_are_one_sentence(folder: Path):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    shape = b'{"a":{"dtype":"F32","shape":[99999999999,99999999],"data_offsets":[0,4]}}'
    damaged = {
        "empty": b"",
        "short": whole[:5],
        "header cut": whole[: 8 + size // 2],
        "cut": whole[:-100],
        "more": whole + b"x" * 100,
        "header of 2^60 bytes": struct.pack("<Q", 1 << 60) + whole[8:],
        "zip": b"PK\x03\x04" + whole[4:],
        "text": b"hello",
        "no tensors": struct.pack("<Q", 2) + b"{}",
        "header of NaN": struct.pack("<Q", 3) + b"NaN",
        "huge shape": struct.pack("<Q", len(shape)) + shape + bytes(4),
    }
    for name, content in damaged.items():
        file.write_bytes(content)
        for arch in (None, f"local-dir:{folder}"):
            checkpoint = None if arch else str(folder)
            with pytest.raises(InputError) as error:
                open_network("model", arch=arch, pretrained=True, checkpoint=checkpoint)
            assert "\n" not in str(error.value) and len(str(error.value)) < 900, name
        with pytest.raises(InputError):
            open_network("model", arch="test_resnet", checkpoint=str(file))


def rewritten(folder: Path, change) -> Path:
    weights = {k: change(k, v) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_weights_that_are_no_numbers_are_refused(folder: Path, tmp_path: Path):
    kept = (folder / "model.safetensors").read_bytes()
    first = "conv1.0.weight"
    for change, said in (
        (lambda k, v: v * float("nan") if k == first else v, f"{first} is not finite"),
        (lambda k, v: v / 0 if k == first else v, f"{first} is not finite"),
        (lambda k, v: v.to(torch.int8) if v.is_floating_point() else v, "of no real numbers"),
        (lambda k, v: v > 0 if k == first else v, "of no real numbers"),
    ):
        rewritten(folder, change)
        with pytest.raises(InputError, match=said):
            open_network("model", arch=None, checkpoint=str(folder))
        (folder / "model.safetensors").write_bytes(kept)
    rewritten(folder, lambda k, v: v.half())  # counters too: widely done, and loads
    assert open_network("model", arch=None, checkpoint=str(folder)).num_classes == 3


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "state_dict.",
     "state_dict.module.", "model.", "ema.", "model_ema.module."],
)  # fmt: skip
def test_what_wrappers_put_before_names_is_taken_off(folder: Path, prefix: str):
    wanted = open_network("model", arch=None, checkpoint=str(folder)).sha256()
    weights = load_file(folder / "model.safetensors")
    named = {f"{prefix}{k}": v for k, v in weights.items()}
    if "ema" in prefix:
        named["n_averaged"] = torch.tensor(5)
    save_file(named, folder / "model.safetensors")
    assert open_network("model", arch=None, checkpoint=str(folder)).sha256() == wanted
    file = folder / "alone.safetensors"
    save_file(named, file, {"architecture": "test_resnet"})
    assert open_network("student", arch=None, checkpoint=str(file)).num_classes == 3
    backbone = open_classifier(BackboneConfig(checkpoint=str(folder)))
    assert backbone.sha256() == wanted


def test_a_part_that_was_compiled_and_two_networks_in_one_file(folder: Path):
    wanted = open_network("model", arch=None, checkpoint=str(folder)).sha256()
    weights = load_file(folder / "model.safetensors")
    part = {k.replace("layer1.", "layer1._orig_mod."): v for k, v in weights.items()}
    save_file(part, folder / "model.safetensors")
    assert open_network("model", arch=None, checkpoint=str(folder)).sha256() == wanted
    both = {f"{p}.{k}": v.clone() for p in ("model", "model_ema") for k, v in weights.items()}
    save_file(both, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"holds 2 networks \(model, model_ema\)"):
        open_network("model", arch=None, checkpoint=str(folder))
