"""`ssld zoo ...` as one types it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import reference
import timm
import torch
from safetensors.torch import load_file

from ssld.__main__ import main

NAME, CLASS = "mobilenetv3_small_035_ssld", "MobileNetV3_small_x0_35"
PLAIN, PLAIN_CLASS = "lcnet_050_ssld", "PPLCNet_x0_5"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with two published files."""
    folder = tmp_path_factory.mktemp("published")
    for name in (CLASS, PLAIN_CLASS):
        reference.write_pdparams(name, folder / f"{name}_ssld_pretrained.pdparams")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SSLD_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSLD_ZOO_DIR", raising=False)


def ssld(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["zoo", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_list_filters_and_sorts(capsys) -> None:
    code, table, _ = ssld(capsys, "list", "--min_top1", "80", "--max_macs_m=1000")
    names = [line.split()[0] for line in table.splitlines() if "_ssld" in line]
    assert code == 0 and names == ["lcnet_250_ssld", "lcnetv2_base_ssld"]
    _, found, _ = ssld(capsys, "list", "--json")
    entries = json.loads(found)
    accuracies = [entry["top1"] for entry in entries if entry["top1"] is not None]
    assert len(entries) == 41 and accuracies == sorted(accuracies, reverse=True)
    _, found, _ = ssld(capsys, "list", "--json", "--license", "noncommercial")
    assert {e["teacher_license"] for e in json.loads(found)} == {"cc-by-nc-4.0"}
    assert "no entry passes" in ssld(capsys, "list", "--min_top1", "99")[1]


def test_show_says_all_and_a_wrong_name_offers_the_nearest(capsys) -> None:
    code, said, _ = ssld(capsys, "show", "resnet50d_ssld")
    assert code == 0 and "cc-by-nc-4.0" in said and "83.0" in said and "82.39" in said
    assert json.loads(ssld(capsys, "show", "resnet50d_ssld", "--json")[1])["top1"] == 83.0
    code, _, error = ssld(capsys, "show", "resnet50_ssld")
    assert code == 2 and "did you mean" in error and "resnet50d_ssld" in error


def test_convert_writes_a_folder_that_plain_timm_loads(capsys, published, tmp_path) -> None:
    file, out = published / f"{PLAIN_CLASS}_ssld_pretrained.pdparams", tmp_path / "out"
    code, said, _ = ssld(capsys, "convert", file, "--class", PLAIN_CLASS, "--out", out)
    assert code == 0 and "plain timm" in said
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert model.pretrained_cfg["architecture"] == "lcnet_050"
    with torch.inference_mode():
        found = model(torch.from_numpy(reference.INPUT))
    expected = torch.from_numpy(reference.logits(PLAIN_CLASS))
    torch.testing.assert_close(found, expected, rtol=0, atol=1.5e-5 * float(expected.std()))
    facts = json.loads((out / "ssld.json").read_text())
    assert facts["provenance"]["file"] == file.name and len(facts["provenance"]["sha256"]) == 64
    assert [metric["value"] for metric in facts["metrics"]] == [0.661, 0.8646]
    assert ssld(capsys, "verify", out)[0] == 0
    code, _, error = ssld(capsys, "convert", file, "--class", PLAIN_CLASS, "--out", out)
    assert code == 2 and "is not empty" in error


def test_a_file_of_another_name_claims_no_accuracy(capsys, published, tmp_path) -> None:
    file = tmp_path / "mine.pdparams"
    file.write_bytes((published / f"{CLASS}_ssld_pretrained.pdparams").read_bytes())
    assert ssld(capsys, "convert", file, f"--class={CLASS}", "--out", tmp_path / "out")[0] == 0
    facts = json.loads((tmp_path / "out/ssld.json").read_text())
    assert facts["metrics"] == [] and "teacher" not in facts
    assert facts["license"]["inherited"] == [{"of": "their makers", "license": "unknown"}]
    assert "ResNet50" not in (tmp_path / "out/README.md").read_text()


def test_of_two_files_of_one_name_the_path_says_which(capsys, tmp_path) -> None:
    name = "ResNet34_vd_ssld_pretrained.pdparams"
    file = reference.write_pdparams("ResNet34_vd", tmp_path / name)
    assert ssld(capsys, "convert", file, "--class", "ResNet34_vd", "--out", tmp_path / "a")[0] == 0
    facts = json.loads((tmp_path / "a/ssld.json").read_text())
    assert facts["metrics"] == [] and facts["license"]["license"] == "cc-by-nc-4.0"
    (tmp_path / "dygraph").mkdir()
    file = file.rename(tmp_path / "dygraph" / name)
    assert ssld(capsys, "convert", file, "--class", "ResNet34_vd", "--out", tmp_path / "b")[0] == 0
    facts = json.loads((tmp_path / "b/ssld.json").read_text())
    assert facts["name"] == "resnet34d_ssld.dygraph" and facts["metrics"]
    assert all("not measured on these" in metric["source"] for metric in facts["metrics"])


def test_a_wrong_class_and_a_malicious_file_write_nothing(capsys, published, tmp_path) -> None:
    file, out = published / f"{CLASS}_ssld_pretrained.pdparams", tmp_path / "out"
    code, _, error = ssld(capsys, "convert", file, "--class", "ResNet50_vd", "--out", out)
    assert code == 2 and f"give `--class {CLASS}`" in error and error.count("\n") == 1
    evil = tmp_path / "evil.pdparams"
    evil.write_bytes(b"cos\nsystem\n(Vtouch ran\ntR.")
    code, _, error = ssld(capsys, "convert", evil, "--class", CLASS, "--out", out)
    assert code == 2 and "os.system" in error
    assert not out.exists() and [p.name for p in tmp_path.iterdir()] == ["evil.pdparams"]


def test_a_damaged_number_of_tensors_is_refused(capsys, published, tmp_path) -> None:
    weights = pickle.loads((published / f"{CLASS}_ssld_pretrained.pdparams").read_bytes())
    del weights["blocks.3.mid_se.conv1.bias"]
    file = tmp_path / "short.pdparams"
    file.write_bytes(pickle.dumps(weights, protocol=2))
    code, _, error = ssld(capsys, "convert", file, "--class", CLASS, "--out", tmp_path / "out")
    assert code == 2 and "nothing fills 'blocks.2.0.se.conv_reduce.bias'" in error


def test_bundle_carries_weights_to_a_site_without_internet(
    capsys, published, tmp_path, monkeypatch
) -> None:
    tar, site = tmp_path / "b.tar", tmp_path / "site"
    words = ("bundle", NAME, PLAIN, "--out", tar, "--weights_dir", published)
    assert ssld(capsys, *words)[0] == 0
    before = load_file(tmp_path / "cache" / NAME / "model.safetensors")
    assert ssld(capsys, "unbundle", tar, "--out", site)[0] == 0
    monkeypatch.setenv("SSLD_ZOO_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setenv("SSLD_ZOO_DIR", str(site))
    after = timm.create_model(NAME, pretrained=True).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_export_is_compared_with_eager(capsys, published, tmp_path) -> None:
    out = tmp_path / "a.pt"
    words = ("export", NAME, "--format", "torchscript", "--out", out, "--weights_dir", published)
    code, said, _ = ssld(capsys, *words)
    assert code == 0 and "of the logits' deviation" in said and out.is_file()
    code, _, error = ssld(capsys, *words[:3], "torchvision", "--out", tmp_path / "tv", *words[6:])
    assert code == 2 and "is no ResNet" in error and not (tmp_path / "tv").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lst"], "did you mean 'list'"),
        (["publish", "somewhere"], "give either repo"),
        (["publish", "nowhere", "--to", "out"], "nowhere"),
        (["publish", "nowhere", "--repo", "../evil"], "names no repository"),
        (["convert", "x.pdparams", "--out", "y"], "--class ResNet50_vd"),
        (["list", "--license", "foo"], "give one of"),
        (["export", "/nope/dir", "--format", "onnx", "--out", "a.onnx"], "no such file or folder"),
        (["bundle", "lcnet_050_ssld", "lcnet_050_ssld", "--out", "b.tar"], "given twice"),
        (["verify", "."], "ssld.json"),
        (["export", "resnet50_ssld", "--format", "onnx", "--out", "a.onnx"], "resnet50d_ssld"),
        (["export", "resnet50d_ssld", "--format", "onx", "--out", "a.onnx"], "format"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, sentence, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = ssld(capsys, *words)
    assert code == 2 and sentence in error and error.count("\n") == 1, error
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
