"""The card: valid front matter, and a stranger's text that stays text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from zoo.errors import InputError
from zoo.licences import combine, front_matter, is_loud, normalised, timm_license, weights
from zoo.publish.card import code, prose, write_card

NONCOMMERCIAL_TEACHER = "resnext101_32x16d.fb_wsl_ig1b_ft_in1k"
HOSTILE = [
    "<script>alert(1)</script>",
    "</details><img src=x onerror=alert(1)>",
    "x\n---\nlicense: mit\n---\n# owned",
    "---",
    "!!python/object/apply:os.system ['true']",
    "[click](javascript:alert(1)) ![p](http://e.vil/p.png) <http://e.vil> http://e.vil www.e.vil",
    "``` \n```\n````\n<b>",
    "a | b\n| c | d |\n> [!WARNING]\n# h\n- l\n1. l\n***bold*** __u__ ~~s~~ $x$ a@b.cd &lt;i&gt;",
    "zero\u200bwidth \u202eright to left \x00\x07\x1b[31m \u2028 \ud800",
    "ü" * 100_000,
    "`" * 500,
    "{{ 7 * 7 }} {% raw %} *a &a <<: *a",
]


def distilled(**changes: Any) -> dict[str, Any]:
    shares = {"low": 0.7, "high": 0.9, "images": 100}
    teacher = {"name": NONCOMMERCIAL_TEACHER, "license": "cc-by-nc-4.0", "sha256": "ab" * 32}
    top1 = {"name": "top1", "value": 0.8, **shares, "dataset": "a/b", "dataset_id": "a/b"}
    agreement = {"name": "agreement1", "value": 0.9, **shares, "dataset": "data/val"}
    return {
        "name": "mine",
        "kind": "distilled",
        "step": 300,
        "steps": 300,
        "finished": True,
        "architecture": "resnet50d",
        "parameters_m": 25.6,
        "macs_m": 4350.0,
        "input_size": 224,
        "license": combine(None, [("the teacher", "cc-by-nc-4.0"), ("the data", "mit")]),
        "recipe": {"loss": {"name": "kl"}},
        "teacher": teacher,
        "data": {"sha256": "cd" * 32, "sources": [{"source": "a/b", "images": 30}]},
        "versions": {"timm": "1.0"},
        "metrics": [
            {**top1, "command": "ssld evaluate --model . --data v"},
            {**agreement, "command": "ssld distill --config config.yaml"},
            {"name": "divergence", "value": 0.1, "low": None, "high": None, "images": None},
        ],
        **changes,
    }


def card_of(folder: Path, facts: dict[str, Any], repo: str | None = None) -> ModelCard:
    write_card(folder, facts, repo)
    return ModelCard.load(folder / "README.md")


def test_front_matter_is_what_the_hub_reads(tmp_path):
    card = card_of(tmp_path, distilled(data={"datasets": ["imagenet-1k", "my photos"]}), "o/mine")
    data = card.data.to_dict()
    assert data["license"] == "cc-by-nc-4.0" and "license_name" not in data
    assert data["library_name"] == "timm" and data["pipeline_tag"] == "image-classification"
    assert data["base_model"] == [f"timm/{NONCOMMERCIAL_TEACHER}"]
    assert data["datasets"] == ["imagenet-1k"]  # the other is no id, and in the body only
    assert "my photos" in card.text
    assert data["metrics"] == ["accuracy"] and "distillation" in data["tags"]
    name, results = model_index_to_eval_results(data["model-index"])
    found = [(r.task_type, r.dataset_type, r.metric_type, r.metric_value) for r in results]
    assert name == "mine"
    assert found == [
        ("image-classification", "a/b", "accuracy", 0.8),
        ("image-classification", "local-data-val", "agreement", 0.9),
    ]


def test_eval_results_are_what_the_hub_reads(tmp_path):
    write_card(tmp_path, distilled())
    files = sorted(tmp_path.glob(".eval_results/*.yaml"))
    assert [file.name for file in files] == ["a-b.yaml", "local-data-val.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[0].read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("a/b", "top1", 0.8)
    assert entry.notes == (
        "95 % interval 0.700000 to 0.900000; 100 images; ssld evaluate --model . --data v"
    )


def test_the_body_says_what_one_must_know(tmp_path):
    text = card_of(tmp_path, distilled(), "org/mine").text
    assert text.index("> [!WARNING]\n> Non-commercial") < text.index("## Usage")
    assert 'timm.create_model("hf-hub:org/mine", pretrained=True)' in text
    assert "| top-1 accuracy | 80.00% | 70.00% to 90.00% | 100 | a/b |" in text
    assert "ssld evaluate --model . --data v\nssld distill --config config.yaml\n```" in text
    assert "```yaml\nloss:\n  name: kl\n```" in text
    assert "curves.png" not in text
    (tmp_path / "curves.png").touch()
    assert "](curves.png)" in card_of(tmp_path, distilled()).text


def test_usage_works_as_it_stands(tmp_path):
    text = card_of(tmp_path, distilled()).text
    block = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert block is not None
    assert len(block[1].splitlines()) == 3
    compile(block[1], "usage", "exec")
    ours = card_of(tmp_path, distilled(architecture="hrnet_w99_ssld")).text
    assert "import zoo" in ours and "import zoo" not in text


def test_an_unfinished_run_and_one_that_did_not_learn_say_so(tmp_path):
    facts = distilled(finished=False, step=300, reached=420, steps=1000)
    text = card_of(tmp_path, {**facts, "verdict": "not learning: it has collapsed"}).text
    assert "step 300 of 1,000" in text
    assert "not finished: it had reached step 420" in text
    assert "> [!WARNING]\n> The run's own verdict: not learning: it has collapsed" in text


def test_converted_weights_have_a_card_too(tmp_path):
    published = {"name": "top1", "value": 0.824, "dataset": "imagenet-1k", "images": None}
    facts = {
        "name": "resnet50d_ssld",
        "kind": "converted",
        "architecture": "resnet50d",
        "license": "apache-2.0",
        "provenance": {"file": "f.pdparams", "url": "https://x/f", "sha256": "a", "class": "R"},
        "metrics": [{**published, "source": "https://x/table"}],
        "teacher": {"name": NONCOMMERCIAL_TEACHER, "license": "cc-by-nc-4.0"},
    }
    card = card_of(tmp_path, facts)
    assert card.data.to_dict()["license"] == "cc-by-nc-4.0"
    assert card.data.to_dict()["base_model"] == [f"timm/{NONCOMMERCIAL_TEACHER}"]
    assert "[!WARNING]" in card.text and "f.pdparams" in card.text
    assert "82.40%" in card.text and "Published by: `https://x/table`" in card.text
    (file,) = tmp_path.glob(".eval_results/*.yaml")
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.source_url) == ("imagenet-1k", "https://x/table")


def poisoned(value: Any, text: str) -> Any:
    """Every string of the facts replaced, and every key where keys are free."""
    if isinstance(value, dict):
        return {key: poisoned(x, text) for key, x in value.items()}
    if isinstance(value, list):
        return [poisoned(x, text) for x in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(tmp_path, text):
    facts = distilled(description=text, verdict=text, provenance={"a": text, text: "b"})
    facts["data"] |= {"curation": {text: text}, "datasets": [text]}
    names = [metric["name"] for metric in facts["metrics"]]
    facts = poisoned({**facts, "recipe": {"a": {text: text}}}, text)
    for metric, name in zip(facts["metrics"], names, strict=True):
        metric["name"] = name
    harmless = card_of(tmp_path / "a", distilled(description="x", provenance={"a": "x", "b": "y"}))
    card = card_of(tmp_path / "b", facts)
    data, expected = card.data.to_dict(), harmless.data.to_dict()
    assert data.keys() <= expected.keys() | {"license_name", "license_link"}
    assert data["license"] == "other" and data["license_name"] == "unknown"
    model_index_to_eval_results(data["model-index"])
    for file in (tmp_path / "b").glob(".eval_results/*.yaml"):
        parse_eval_result_entries(yaml.safe_load(file.read_text()))
    body = without_code(card.text)
    for tag in ("<details><summary>", "</summary>", "</details>", "agreement@1"):
        body = body.replace(tag, "")
    assert "<" not in body and "](" not in body and "://" not in body
    assert not re.search(r"www\.|\w@\w|[$*~{}#]{2}[^# ]|[\x00-\x09\x0b-\x1f\u202e\u200b]", body)
    headings = re.findall(r"^#+ .*", body, re.MULTILINE)[1:]
    assert set(headings) <= {f"## {x}" for x in TITLES}
    assert len((tmp_path / "b/README.md").read_text(encoding="utf-8")) < 150_000


TITLES = (
    "Usage,Results,Intended use and limits,Training data,Teacher,Licence,"
    "Where the weights come from"
).split(",")


def without_code(markdown: str) -> str:
    """As CommonMark sees it: fenced blocks end at a fence at least as long, spans at a backtick."""
    kept, fence = [], ""
    for line in markdown.split("\n"):
        found = re.match(r" {0,3}(`{3,})([^`]*)$", line)
        if not fence and found:
            fence = found[1]
        elif fence and found and len(found[1]) >= len(fence) and not found[2].strip():
            fence = ""
        elif not fence:
            kept.append(re.sub(r"`[^`]*`", "", line))
    assert not fence
    return "\n".join(kept)


def test_escaping_keeps_plain_words_readable():
    assert prose("A résumé, 99.5% (v2): x/y-z") == "A résumé, 99.5% (v2): x/y-z"
    assert prose("- a <b>_c_") == "&#45; a &#60;b&#62;&#95;c&#95;"
    assert prose("1. first") == "&#49;. first"
    assert code("a`b|c\nd") == "`a'b¦c d`" and code("\n") == "`?`"


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "o/<b>", "../x", 'o/x"', ""])
def test_a_bad_repository_is_refused(tmp_path, repo):
    with pytest.raises(InputError, match="give org/name"):
        write_card(tmp_path, distilled(), repo)


def test_damaged_facts_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="facts for the card are damaged"):
        write_card(tmp_path, distilled(metrics="many"))


@pytest.mark.parametrize(
    ("given", "inherited", "license", "noncommercial", "loud"),
    [
        (None, ["apache-2.0", "cc-by-4.0"], "apache-2.0", False, False),
        (None, ["MIT", "cc-by-nc-4.0"], "cc-by-nc-4.0", True, True),
        (None, ["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0", True, True),
        ("apache-2.0", ["cc-by-nc-4.0"], "cc-by-nc-4.0", True, True),
        ("cc-by-nc-sa-4.0", ["cc-by-nc-4.0"], "cc-by-nc-sa-4.0", True, True),
        ("other", ["cc-by-nc-4.0"], "other", True, True),
        (None, ["apache-2.0", None], "other", False, True),
        ("MIT", ["apache-2.0", None], "mit", False, True),
        (None, ["cc-by-sa-4.0"], "other", False, False),
        ("BSD-3-Clause", [], "bsd-3-clause", False, False),
        (None, ["acme-noncommercial-license"], "acme-noncommercial-license", True, True),
        ("acme-license", ["mit"], "acme-license", False, True),
        ("GPL-3.0-only", ["mit"], "gpl-3.0", False, False),
    ],
)
def test_combining_licences(given, inherited, license, noncommercial, loud):
    found = combine(given, [(f"part {i}", x) for i, x in enumerate(inherited)])
    assert (found["license"], found["noncommercial"]) == (license, noncommercial)
    assert is_loud(found) == loud
    assert bool(found["note"]) or not loud


def test_what_is_unknown_is_said():
    note = combine("mit", [("the teacher", None), ("the data", "cc-by-sa-4.0")])["note"]
    assert "The licence of the teacher is not known: ask before using these weights comm" in note
    assert "The licence of the data is cc-by-sa-4.0, which sets conditions" in note
    asked = combine("mit", [("the teacher", "cc-by-nc-4.0")])["note"]
    assert "The publisher gave mit; what is inherited allows no more than cc-by-nc-4.0" in asked


@pytest.mark.parametrize("license", ["<b>", "mit\nx: y", "a b", "-x", "x" * 70])
def test_what_is_no_licence_id_is_refused(license):
    with pytest.raises(ValueError, match="no licence id"):
        normalised(license)


def test_front_matter_of_licences():
    assert front_matter("mit") == {"license": "mit"}
    named = {"license": "other", "license_name": "seer-license", "license_link": "LICENSE.md"}
    assert front_matter("seer-license") == named


def test_licences_of_weights(tmp_path):
    assert timm_license(NONCOMMERCIAL_TEACHER) == "cc-by-nc-4.0"
    assert timm_license("resnet50d.no_such_tag") is None and timm_license("nonsense") is None
    plain = weights("resnet50d", None, "x")
    assert plain["name"] == "resnet50d.ra2_in1k" and plain["hub_id"] == "timm/resnet50d.ra2_in1k"
    pinned = weights(f"hf-hub:timm/{NONCOMMERCIAL_TEACHER}@abc", None, "x")
    assert pinned["license"] == "cc-by-nc-4.0"
    assert weights("hf-hub:org/x@abc", None, "x")["hub_id"] == "org/x"
    # timm's config.json names the licence of other weights of the same architecture
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"license": "apache-2.0"}}')
    own = weights("resnet50d", str(tmp_path), "resnet50d")
    assert (own["license"], own["hub_id"]) == (None, None)
