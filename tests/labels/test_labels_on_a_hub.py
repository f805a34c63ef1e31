"""Label sets on a hub: one commit, a card, and back, also where the hub's files are others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hub_server import Hub, contents, hub, token  # noqa: F401
from huggingface_hub import constants

from ssld.labels import format as files

REPO = "org/labels"
ADDRESS = f"hf://datasets/{REPO}"
SHARD = "train-000002.safetensors"


@pytest.fixture
def pushed(hub: Hub, token, labels, ssld) -> Hub:  # noqa: F811
    code, said = ssld("labels", "push", labels, ADDRESS)
    assert code == 0 and "10 files were sent" in said, said
    return hub


def sent(folder: Path) -> dict[str, bytes]:
    return {name: x for name, x in contents(folder).items() if name not in (".lock", "log.jsonl")}


def test_a_push_is_one_commit_with_a_card(pushed, labels, ssld):
    there = pushed.files(REPO)
    card = there.pop("README.md").decode()
    assert there == sent(labels)
    assert len(pushed.repos[REPO].commits) == 2  # the first is the hub's own
    front = yaml.safe_load(card.split("---")[1])
    assert front["task_categories"] == ["image-classification"] and "stored-labels" in front["tags"]
    assert "3 augmented views of each of 60 images" in card and "24 held-out" in card
    assert f"ssld distill --labels {ADDRESS}" in card and "licence `unknown`" in card
    assert "5 likeliest of 12 classes" in card and "scale:" in card
    assert str(labels.parent) not in card
    assert "0 files were sent" in ssld("labels", "push", labels, ADDRESS)[1]
    assert len(pushed.repos[REPO].commits) == 2


def test_it_is_pulled_and_trains_by_its_address(pushed, labels, ssld, words, tmp_path):
    revision = pushed.repos[REPO].refs["main"]
    out = tmp_path / "out"
    code, said = ssld("labels", "pull", f"{ADDRESS}@{revision}", f"--out={out}")
    assert code == 0 and sent(out) == sent(labels), said
    runs = []
    for name, place in (("a", ADDRESS), ("b", labels)):
        code, said = ssld("distill", *words(tmp_path / name, labels=place, steps=1))
        assert code == 0, said
        runs.append(json.loads((tmp_path / name / "run.json").read_text()))
    assert runs[0]["labels_sha256"] == runs[1]["labels_sha256"]
    assert runs[0]["exported"]["sha256"] == runs[1]["exported"]["sha256"]


def test_a_changed_byte_is_noticed_and_fetched_again(pushed, ssld, words, tmp_path):
    pushed.faults.corrupt = {SHARD}
    code, said = ssld("distill", *words(tmp_path / "run", labels=ADDRESS))
    assert code == 2 and SHARD in said and "damaged" in said and not (tmp_path / "run").exists()
    assert not list(Path(constants.HF_HUB_CACHE).glob(f"*/snapshots/*/{SHARD}"))
    pushed.faults.corrupt = set()
    assert ssld("labels", "pull", ADDRESS, f"--out={tmp_path / 'out'}")[0] == 0


@pytest.mark.parametrize("gone", [files.INDEX, SHARD, files.MANIFEST])
def test_half_a_set_is_refused(pushed, ssld, tmp_path, gone):
    pushed.put(REPO, {gone: None})
    code, said = ssld("labels", "pull", ADDRESS, f"--out={tmp_path / 'out'}")
    assert code == 2 and f"has no {gone}" in said and "ssld labels push" in said
    assert not (tmp_path / "out" / files.INDEX).exists()


@pytest.mark.usefixtures("token")
def test_a_repository_of_something_else_is_left_alone(hub, labels, ssld):  # noqa: F811
    hub.create(REPO)
    hub.put(REPO, {"README.md": b"pictures", "pictures.tar": b"1"})
    before = hub.files(REPO)
    code, said = ssld("labels", "push", labels, ADDRESS)
    assert code == 2 and "something else" in said and hub.files(REPO) == before


@pytest.mark.parametrize("address", ["hf://org/labels", f"{ADDRESS}/sub", f"{ADDRESS}@main/../x"])
def test_addresses_that_name_no_data_set(labels, ssld, address):
    code, said = ssld("labels", "push", labels, address)
    assert code == 2 and ("give hf://datasets/org/name" in said or "names no repository" in said)


def test_a_hub_without_the_set_is_said_in_a_sentence(hub, words, ssld, tmp_path):  # noqa: F811
    code, said = ssld("distill", *words(tmp_path / "run", labels=ADDRESS))
    assert code == 2 and "there is no org/labels" in said and len(said.splitlines()) == 1
