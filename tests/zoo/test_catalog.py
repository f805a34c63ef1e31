"""The catalogue names every published file once, and says what a user may rely on."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.resources import files

import pytest
import yaml

from zoo.catalog import Entry, catalog, find, paddle_classes, read, select
from zoo.errors import InputError

HOST = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/"
LEGACY = """
HRNet_W18_C HRNet_W48_C MobileNetV1 MobileNetV3_large_x1_0 MobileNetV3_small_x0_35
MobileNetV3_small_x1_0 PPHGNet_base PPHGNet_small PPHGNet_tiny PPLCNetV2_base PPLCNet_x0_25
PPLCNet_x0_5 PPLCNet_x1_0 PPLCNet_x2_5 ResNet101_vd ResNet34_vd ResNet50_vd SE_HRNet_W64_C
""".split()
NEWER = """
GhostNet_x1_3 MobileNetV2 Res2Net101_vd_26w_4s Res2Net200_vd_26w_4s Res2Net50_vd_26w_4s ResNet34_vd
ResNet50_vd
""".split()
LIVE = {
    *(f"{HOST}legendary_models/{name}_ssld_pretrained.pdparams" for name in LEGACY),
    *(f"{HOST}{name}_ssld_pretrained.pdparams" for name in NEWER),
    *(f"{HOST}legendary_models/PPHGNetV2_B{i}_ssld_pretrained.pdparams" for i in range(7)),
    *(f"{HOST}legendary_models/PPHGNetV2_B{i}_ssld_stage1_pretrained.pdparams" for i in range(7)),
}
FIX = f"{HOST}Fix_ResNet50_vd_ssld_v2_pretrained.pdparams"
STUDENTS = {  # table 2 of the paper
    "mobilenetv1_100_ssld": (70.9, 77.9),
    "mobilenetv2_100_ssld": (72.1, 76.4),
    "mobilenetv3_small_100_ssld": (68.2, 71.3),
    "mobilenetv3_large_100_ssld": (75.3, 79.0),
    "hrnet_w18_ssld": (76.9, 81.2),
    "se_hrnet_w64_ssld": (80.6, 84.8),
    "resnet50d_ssld": (79.1, 83.0),
    "resnet101d_ssld": (80.3, 83.7),
    "resnet200d_ssld": (80.9, 85.0),
}
OURS = """
mobilenetv2_100 mobilenetv3_large_100 mobilenetv3_small_100 mobilenetv3_small_035 lcnet_025
lcnet_250 resnet34d res2net50d res2net101d res2net200d se_hrnet_w64 hgnetv2_b0 hgnetv2_b1 hgnetv2_b2
hgnetv2_b3 hgnetv2_b4 hgnetv2_b5 hgnetv2_b6 hrnet_w18 hrnet_w48
""".split()  # of these the last two are timm's own
NUMBERS = ("top1", "top5", "baseline_top1", "baseline_top5")


def test_every_published_file_stands_there_once():
    urls = [entry.url for entry in catalog().values() if entry.url]

    assert len(LIVE) == 39
    assert len(urls) == len(set(urls))
    assert set(urls) == LIVE | {FIX}
    assert "does not have it" in find("resnet50d_ssld.fix").notes
    assert [e.name for e in catalog().values() if e.url is None] == ["resnet200d_ssld"]


def test_no_entry_hides_another_of_the_same_name():
    text = (files("zoo") / "catalog.yaml").read_text(encoding="utf-8").partition("\nentries:\n")[2]

    assert re.findall(r"^  (\S+):", text, re.MULTILINE) == list(catalog())


def test_the_nine_students_of_the_paper_agree_with_its_table():
    assert {e.name for e in catalog().values() if e.paper_student} == set(STUDENTS)
    for name, (baseline, best) in STUDENTS.items():
        entry = find(name)
        assert entry.baseline_top1 == pytest.approx(baseline, abs=0.15), name
        # The paper gives MobileNetV2 after stage 1, the file is from after stage 2.
        assert entry.top1 == pytest.approx(best, abs=0.35 if "v2" in name else 0.1), name
        assert entry.stage == 2


@pytest.mark.parametrize("entry", catalog().values(), ids=lambda entry: entry.name)
def test_entry_is_well_formed(entry: Entry):
    assert re.fullmatch(r"[a-z0-9_]+_ssld(\.(dygraph|fix|stage1))?", entry.name)
    assert entry.name == entry.arch_name + (f".{entry.tag}" if entry.tag else "")
    assert entry.architecture in (entry.arch_name, entry.arch_name.removesuffix("_ssld"))
    assert entry.architecture.endswith("_ssld") == (entry.architecture[:-5] in OURS)
    if entry.file and entry.url:
        assert entry.url.endswith(f"/{entry.file}") and entry.file.endswith("_pretrained.pdparams")
        assert entry.paddle_class in entry.file
    if entry.timm_weights:
        assert entry.timm_weights.startswith(entry.architecture.removesuffix("_ssld"))
    assert (entry.teacher_license is not None) == ("ResNeXt101_32x16d_wsl" in (entry.teacher or ""))
    forbids = entry.teacher_license == "cc-by-nc-4.0"
    assert (entry.terms == "noncommercial") == forbids
    assert entry.license == "apache-2.0" and entry.sha256 is None and entry.revision is None
    assert entry.source.startswith(("PaddlePaddle/PaddleClas ", "Cui et al. 2021"))
    assert all(len(line) > 20 for line in entry.source.split("; "))


@pytest.mark.parametrize("entry", catalog().values(), ids=lambda entry: entry.name)
def test_numbers_are_in_range(entry: Entry):
    for top1, top5 in ((entry.top1, entry.top5), (entry.baseline_top1, entry.baseline_top5)):
        assert top1 is None or 50 < top1 < 87
        assert top5 is None or (top1 is not None and top1 < top5 < 98)
    if entry.top1 and entry.baseline_top1:
        assert 1 < entry.top1 - entry.baseline_top1 < 7
    assert (entry.top1 is None) == (entry.tag == "stage1")
    assert 1 < entry.parameters_m < 130
    assert 10 < entry.macs_m < 30_000
    assert entry.input_size == (320 if entry.tag == "fix" else 224)
    # The publisher's test resizes the shorter side to a whole number of pixels, as timm does.
    shorter = {"fix": 320}.get(entry.tag, 236 if entry.arch_name.startswith("hgnet") else 256)
    assert int(entry.input_size / entry.crop_pct) == shorter
    assert entry.interpolation == ("bicubic" if shorter == 236 else "bilinear")
    assert entry.stage in (None, 1, 2, 3)


def test_files_of_one_class_are_one_architecture():
    classes = paddle_classes()

    names = ["resnet50d_ssld", "resnet50d_ssld.dygraph", "resnet50d_ssld.fix"]
    assert [e.name for e in classes["ResNet50_vd"]] == names
    assert len(classes["PPHGNetV2_B4"]) == 2
    assert sum(map(len, classes.values())) == len(catalog()) == 41
    for entries in classes.values():
        assert len({(e.architecture, str(e.args), e.parameters_m) for e in entries}) == 1


def test_where_documents_disagree_the_notes_say_so():
    assert "82.39" in find("resnet50d_ssld").notes and "83.0" in find("resnet50d_ssld").notes
    assert find("resnet50d_ssld.dygraph").top1 == 82.39
    assert "83.0" in find("resnet50d_ssld.dygraph").notes
    assert all(number in find("hrnet_w18_ssld").notes for number in ("81.2", "81.16", "81.6"))
    assert "76.4" in find("mobilenetv2_100_ssld").notes


def test_find_gives_the_entry_or_offers_the_nearest():
    assert find("resnet50d_ssld.fix").arch_name == "resnet50d_ssld"
    with pytest.raises(InputError, match=r"'resnet50_ssld'.*did you mean resnet50d_ssld"):
        find("resnet50_ssld")
    with pytest.raises(InputError, match=r"did you mean mobilenetv3_large_100_ssld"):
        find("MobileNetV3_large_x1_0_ssld")
    with pytest.raises(InputError, match=r"did you mean hgnetv2_b4_ssld or hgnetv2_b4_ssld.stage1"):
        find("PPHGNetV2_B4")
    with pytest.raises(InputError, match=r"no weights 'vit'; `ssld zoo list` shows all 41"):
        find("vit")


def test_select_filters_and_sorts():
    everything = select()
    known = [e.top1 for e in everything if e.top1 is not None]

    assert len(everything) == len(catalog())
    assert known == sorted(known, reverse=True)
    assert all(e.top1 is None for e in everything[len(known) :])
    assert everything[0].name == "hgnetv2_b6_ssld"
    small = select(max_macs_m=300, max_parameters_m=6, min_top1=70)
    assert [e.name for e in small] == [
        "mobilenetv3_large_100_ssld",
        "lcnet_100_ssld",
        "mobilenetv3_small_100_ssld",
    ]
    assert [e.name for e in everything if not e.url] == ["resnet200d_ssld"]


def test_select_by_licence_keeps_the_unknown_apart():
    forbidding, unknown = select(license="CC-BY-NC-4.0"), select(license="unknown")

    assert {e.name for e in forbidding} == {
        e.name for e in catalog().values() if e.terms == "noncommercial"
    }
    assert {e.terms for e in unknown} == {"unknown"}
    assert not {e.name for e in forbidding} & {e.name for e in unknown}
    assert len(forbidding) + len(unknown) == len(catalog())
    assert select(license="permissive") == []  # nobody can promise that of these weights
    assert len(select(license="apache-2.0")) == len(catalog())


@pytest.fixture
def content() -> dict:
    """A catalogue of one entry, to be spoilt."""
    whole = yaml.safe_load((files("zoo") / "catalog.yaml").read_text(encoding="utf-8"))
    return whole | {"entries": {"lcnet_100_ssld": whole["entries"]["lcnet_100_ssld"]}}


def refusal(tmp_path, content: object) -> str:
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


def test_every_key_is_needed(tmp_path, content):
    entry = content["entries"]["lcnet_100_ssld"]
    keys = {f.name for f in fields(Entry)} - {"name", "url"}
    assert keys == set(entry) | set(content["defaults"])
    for key in keys:
        rest = {k: v for k, v in entry.items() if k != key}
        defaults = {k: v for k, v in content["defaults"].items() if k != key}
        spoilt = content | {"entries": {"lcnet_100_ssld": rest}, "defaults": defaults}
        assert f"entry lcnet_100_ssld: the key '{key}' is missing" in refusal(tmp_path, spoilt)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parameter_m", 3.0, "unknown key 'parameter_m'; did you mean 'parameters_m'?"),
        ("url", "https://example.org/x", "unknown key 'url'"),
        ("macs_m", "160", "macs_m is '160', it must be float"),
        ("macs_m", None, "macs_m is None"),
        ("macs_m", -1, "macs_m is -1, it must be above 0"),
        ("top1", 744, "top1 is 744, it must be a percentage"),
        ("top5", True, "top5 is True, it must be float"),
        ("input_size", 224.0, "input_size is 224.0, it must be int"),
        ("paper_student", 1, "paper_student is 1, it must be bool"),
        ("mean", 0.5, "mean is 0.5"),
        ("source", "list, hearsay", "source 'hearsay' is not in the block `sources`"),
    ],
)
def test_wrong_values_are_refused(tmp_path, content, key, value, message):
    content["entries"]["lcnet_100_ssld"][key] = value

    assert f"entry lcnet_100_ssld: {message}" in refusal(tmp_path, content)


def test_wrong_files_are_refused(tmp_path, content):
    assert "exactly the text `host`" in refusal(tmp_path, ["a"])
    assert "exactly the text `host`" in refusal(tmp_path, content | {"more": {}})
    assert "exactly the text `host`" in refusal(tmp_path, content | {"entries": ["a"]})
    assert "LCNet_ssld: the name must" in refusal(
        tmp_path, content | {"entries": {"LCNet_ssld": {}}}
    )
    assert "it has no keys" in refusal(tmp_path, content | {"entries": {"lcnet_100_ssld": None}})
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match="broken.yaml is no YAML"):
        read(tmp_path / "broken.yaml")
