"""Files that ssld wrote and something else changed: one sentence names them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from ssld.cli.parse import parse
from ssld.cli.run import exit_code_of
from ssld.common.errors import InputError
from ssld.common.files import read_object, reading
from ssld.compare.config import CompareConfig
from ssld.curate.near_duplicates.search import read_overrides
from ssld.curate.report.page import write_report
from ssld.engine import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = torch.nn.Linear(2, 1)
    state = {"networks": {"student": network}, "optimizer": {"state": {}}, "state": {"best": None}}
    return checkpoint.save(tmp_path, 4, keep=2, **state)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("optimizer.pt", b"", "optimizer.pt is damaged"),
        ("optimizer.pt", b"\x80\x02cos\nsystem\n.", "optimizer.pt is damaged"),
        ("optimizer.pt", b"PK\x03\x04" + b"\0" * 90, "optimizer.pt is damaged"),
        ("state.json", b"\xff\xfe", "state.json is damaged"),
        ("state.json", b"[]", "state.json is damaged .*no object"),
        ("state.json", b"[" * 9999, "state.json is damaged"),
        ("state.json", b'{"step": null}', "it has no step"),
    ],
)
def test_a_checkpoint_whose_sums_fit_and_content_does_not(saved, name, content, said) -> None:
    student = {"student": torch.nn.Linear(2, 1)}
    assert checkpoint.load(saved, student)[1]["step"] == 4
    (saved / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{said}.*remove this checkpoint"):
        checkpoint.load(saved, student)


@pytest.mark.parametrize("name", ["../secret", "/dev/zero", "a\0b"])
def test_a_checkpoints_manifest_that_names_other_places_is_damage(saved: Path, name: str) -> None:
    sums = json.loads((saved / "manifest.json").read_text())
    assert checkpoint.damage(saved) is None
    (saved / "manifest.json").write_text(json.dumps({name: "0", **sums}))
    assert checkpoint.damage(saved) == "manifest.json names other places"


@pytest.mark.parametrize("line", [b"\xff", b"null", b"[" * 9999, b'{"gallery": {}}', b"{"])
def test_a_line_of_overrides_that_is_none_is_named(tmp_path: Path, line: bytes) -> None:
    judged = b'{"gallery": "\xc3\xa9.jpg", "protected": "b.jpg", "verdict": "clear"}\n'
    index = SimpleNamespace(read=lambda columns: [])
    work = SimpleNamespace(out=tmp_path, say=print)
    (tmp_path / "overrides.jsonl").write_bytes(judged)
    assert read_overrides(work, index, index) == {}  # type: ignore[arg-type]
    (tmp_path / "overrides.jsonl").write_bytes(judged + line)
    with pytest.raises(InputError, match="line 2: not an override"):
        read_overrides(work, index, index)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"leakage": [0]}', b'{"warnings": 1}'])
def test_a_page_of_a_curation_whose_manifest_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"stage": "match", "seconds": 3.0}\n\xff\n[[[\n')
    write_report(tmp_path, lambda location: b"")
    assert "Hours" in (tmp_path / "report.html").read_text()
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="is damaged .* and .*`ssld curate`"):
        write_report(tmp_path, lambda location: b"")


@pytest.mark.parametrize("damage", ["cut", "bits", "names", "empty"])
def test_a_record_of_held_out_images_that_was_changed(tmp_path: Path, damage: str) -> None:
    from downstream.ab.records import HELD_OUT, read_result

    lines = [{"kind": "eval", "step": 3, "epoch": 1.0, "top1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    (tmp_path / "run.json").write_text(json.dumps({"exported": {"step": 3}}))
    file = tmp_path / HELD_OUT
    np.savez(file, ids=np.array(["a", "b"]), hits=np.array([1, 0]))
    assert read_result(tmp_path, "transfer").score == 0.5
    if damage == "names":
        np.savez(file, ids=np.array(["a", "b"]))
    whole = file.read_bytes()
    changed = {"cut": whole[:-9], "bits": whole.replace(b"PK", b"PX"), "empty": b""}
    file.write_bytes(changed.get(damage, whole))
    with pytest.raises(InputError, match="is damaged .*remove it"):
        read_result(tmp_path, "transfer")


def test_a_sentence_that_quotes_a_book_keeps_its_beginning_and_its_advice(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(yaml.dump({"runs": ["a", "b"]}))

    def work(config: CompareConfig) -> None:
        raise InputError(f"{tmp_path}: name is {'x' * 9999!r}; give a shorter one")

    words = ["--config", str(tmp_path / "c.yaml")]
    assert exit_code_of(lambda: work(parse("p", CompareConfig, words))) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "give a shorter one" in said and len(said) < 2000


def test_only_what_damage_raises_is_taken_for_damage() -> None:
    for error in (
        OSError("full"),
        InputError("as it is"),
        RuntimeError("ours"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(error)) as found, reading("x", "y"):
            raise error
        assert found.value is error


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize("text", [LAUGHS, "a: &a [*a]", "a: 2026-01-01", "a: !!binary aGk=", "[1]"])
def test_settings_that_ssld_does_not_write_are_named(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"config.yaml is damaged \(.*\); mend it"):
        read_object(file, "mend it")


def test_settings_that_name_a_value_twice_are_read(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a: &a [1, 2.5, null]\nb: {c: *a}")
    assert read_object(file, "mend it") == {"a": [1, 2.5, None], "b": {"c": [1, 2.5, None]}}
