"""Hubs and servers that stand still, talk nonsense, or answer with paths."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_hub import COMMIT, HostileHub, answer, file
from hub_server import talk_to

import zoo
import zoo.fetch
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.models.opening import open_network
from zoo.publish.hub import publish, pull
from zoo.release import MANIFEST, seal
from zoo.weights import weights_file

REPO = "org/net"
INFO = "GET /api/models/org/net(/revision/.*)?"
HEAD_MANIFEST, GET_MANIFEST = (
    f"{method} /org/net/resolve/.*/ssld.json" for method in ("HEAD", "GET")
)
RELEASE = answer(json.dumps({"id": REPO, "sha": COMMIT, "private": False}).encode())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileHub]:
    """Slow is what takes a third of a second."""
    import huggingface_hub
    from huggingface_hub.utils import _http

    server = HostileHub()
    monkeypatch.setattr(zoo.fetch, "SECONDS", 0.3)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    talk_to(server.url, tmp_path / "home", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    yield server
    huggingface_hub.close_session()
    server.stop()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    seal(folder, {"name": "net"})
    return folder


def everything(folder: Path) -> dict[str, bytes | None]:
    paths = (path for path in folder.rglob("*") if "home" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"../../../../victim"'},
        {"ETag": 'W/"/etc/ssld-victim"'},
        {"ETag": "..\\\\..\\\\victim"},
        {"ETag": '".."'},
        {"ETag": '"a"', "X_Linked_Etag": '"x/../../../../../victim"'},
        {"ETag": '"a"', "X_Repo_Commit": "../../../../victim"},
        {"ETag": '"a"', "X_Repo_Commit": "/tmp/ssld-victim"},
    ],
)
def test_headers_that_are_paths_neither_write_nor_remove(hub, tmp_path, headers):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    before = everything(tmp_path)
    hub.answers = {INFO: RELEASE, "(HEAD|GET) /org/net/.*": file("", **headers)}
    with pytest.raises(
        zoo.InputError, match="huggingface_hub.* would make a path outside"
    ) as error:
        pull(REPO, tmp_path / "out")
    assert everything(tmp_path) == before and "\n" not in str(error.value)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_a_missing_file_whose_commit_is_a_path_makes_no_file(hub, tmp_path):
    headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": "../../../../../made"}
    hub.answers = {INFO: RELEASE, "HEAD .*": answer(status="404 Not Found", **headers)}
    before = everything(tmp_path)
    with pytest.raises(zoo.InputError, match="would make a path outside"):
        pull(REPO, tmp_path / "out")
    assert everything(tmp_path) == before


def test_a_cache_that_a_hostile_hub_left_is_not_followed(hub, tmp_path):
    """The link is from a time when nobody looked at headers."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "home" / "hub" / "models--org--net" / "snapshots" / COMMIT / MANIFEST
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    with pytest.raises(
        zoo.InputError, match="huggingface_hub.* leads to .*victim.* remove the link"
    ):
        pull(f"{REPO}@{COMMIT}", tmp_path / "out")
    assert victim.read_text() == "mine" and link.is_symlink()


@pytest.mark.parametrize("etag", ['W/"2d-KdQ+/fH9=="', '"d41d8cd98f00b204-12"', '"..a"', "a.b"])
def test_etags_of_other_servers_are_left_in_peace(hub, tmp_path, etag):
    """Refused is a path that leads out, no more: what is wrong here is the list itself."""
    hub.answers = {INFO: RELEASE, "(HEAD|GET) .*ssld.json": file(etag)}
    with pytest.raises(zoo.InputError) as error:
        pull(REPO, tmp_path / "out")
    assert "would make a path" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["../up", "/etc/up", "a/../../up", "up\0", "a\\up", "a//up", "./up", "config.json/up",
             "ssld.json/up", "\x1b[2Jup", "u" * 300, "\ud800up", ""],
)  # fmt: skip
def test_names_that_are_no_files_inside_are_refused(hub, tmp_path, release, name):
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["config.json"]
    body = json.dumps(manifest).encode()
    hub.answers = {INFO: RELEASE, "(HEAD|GET) .*ssld.json": file('"a"', body)}
    with pytest.raises(zoo.InputError, match="not inside the folder") as error:
        pull(REPO, tmp_path / "out")
    assert str(error.value).isprintable() and not (tmp_path / "out").exists()
    (release / MANIFEST).write_bytes(body)
    assert main(["zoo", "verify", str(release)]) == 2


def dribbles(hub: HostileHub, start: bytes = b"") -> Iterator[bytes]:
    yield from itertools.chain([start] if start else [], hub.parts(itertools.repeat(b"x")))


def slow_headers(hub: HostileHub) -> Iterator[bytes]:
    return dribbles(hub, b"HTTP/1.1 200 OK\r\nX-Long: ")


def slow_body(hub: HostileHub) -> Iterator[bytes]:
    start = file('"b"', b"", Content_Length="9000")
    return dribbles(hub, start)


SLOW = {
    "silent": lambda hub: {".*": None},
    "headers": lambda hub: {".*": slow_headers(hub)},
    "silent HEAD": lambda hub: {INFO: RELEASE, "HEAD .*": None},
    "silent GET": lambda hub: {INFO: RELEASE, "HEAD .*": file('"b"', b" " * 9000), "GET .*": None},
    "body": lambda hub: {INFO: RELEASE, "HEAD .*": file('"b"', b" " * 9000),
                         "GET .*": slow_body(hub)},
}  # fmt: skip


@pytest.mark.parametrize("how", SLOW)
def test_what_stands_still_is_given_up(hub: HostileHub, tmp_path, how):
    hub.answers = SLOW[how](hub)
    with pytest.raises(zoo.InputError, match="is too slow: within 0.3 s it neither") as error:
        pull(REPO, tmp_path / "out")
    assert hub.url in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["silent", "headers"])
def test_publishing_to_what_stands_still_is_given_up(hub: HostileHub, release, how):
    hub.answers = SLOW[how](hub)
    with pytest.raises(zoo.InputError, match="is too slow"):
        publish(release, REPO)


def test_a_slow_server_that_gets_on_is_waited_for(hub: HostileHub, tmp_path, release, monkeypatch):
    """Twice the bound in all, but every part of it moves."""
    monkeypatch.setattr(zoo.fetch, "STEP_BYTES", 100)
    padded = (release / MANIFEST).read_bytes() + b" " * 3000
    start, body = file('"b"', b"", Content_Length=str(len(padded))), iter(padded[:-600])
    slowly = hub.parts(map(bytes, zip(*[body] * 200, strict=False)), 0.03)
    at = len(padded[:-600]) // 200 * 200
    hub.answers = {INFO: RELEASE, "HEAD .*ssld.json": file('"b"', padded),
                   "GET .*ssld.json": itertools.chain([start], slowly, [padded[at:]])}  # fmt: skip
    with pytest.raises(zoo.InputError, match="404 Not Found.*config.json"):
        pull(REPO, tmp_path / "out")  # the list came


NONSENSE = {
    "a list": b"[1]", "null": b"null", "nothing": b"{}", "a number": b"5", "a string": b'"x"',
    "a page": b"<html>Sign in</html>", "empty": b"", "no text": b"\xff\xfe\x00",
    "deep": b"[" * 99999,
    "a commit of another type": b'{"id": "org/net", "sha": [1]}',
    "a commit that is a path": b'{"id": "org/net", "sha": "../../x"}',
    "an escape": b'{"id": "org/net", "sha": "\\u001b[2J"}',
    "a number of 5,000 digits": b'{"id": "org/net", "sha": %s}' % (b"1" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("what", NONSENSE)
def test_answers_that_are_none_are_one_sentence(hub: HostileHub, tmp_path, release, what):
    hub.answers = {"GET /api/.*": answer(NONSENSE[what], Content_Type="text/html")}
    for action in (lambda: pull(REPO, tmp_path / "out"), lambda: publish(release, REPO)):
        with pytest.raises(zoo.InputError, match="answers what no hub|is no hub|failed") as error:
            action()
        assert str(error.value).isprintable() and len(str(error.value)) < 700
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "tree", [b"null", b"{}", b"[null]", b'[{"type": "file"}]', b'[{"path": 3, "type": "file"}]']
)
def test_lists_of_files_that_are_none_are_one_sentence(hub: HostileHub, release, tree):
    hub.answers = {INFO: RELEASE, "GET .*/tree/.*": answer(tree)}
    with pytest.raises(zoo.InputError) as error:
        publish(release, REPO)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("body", [b"null", b"[1]", b"{}", b"<html>", None])
def test_answers_to_an_upload_that_are_none_are_one_sentence(hub, release, body):
    nonsense = body if body is None else answer(body)
    hub.answers = {INFO: RELEASE, "GET .*/tree/.*": answer(b"[]"), "(POST|PUT) .*": nonsense}
    with pytest.raises(zoo.InputError) as error:
        publish(release, REPO)
    assert str(error.value).isprintable() and len(str(error.value)) < 700


def test_a_list_of_files_without_end_is_given_up(hub: HostileHub, release, monkeypatch):
    monkeypatch.setattr(zoo.fetch, "REQUESTS", 8)
    link = f'<{hub.url}/api/models/org/net/tree/{COMMIT}?again=1>; rel="next"'
    hub.answers = {INFO: RELEASE, "GET .*/tree/.*": answer(b"[]", Link=link)}
    with pytest.raises(zoo.InputError, match="was asked 8 times and goes on"):
        publish(release, REPO)


@pytest.mark.parametrize("where", ["info", "HEAD", "GET"])
def test_redirects_to_itself_end(hub: HostileHub, tmp_path, where):
    again = answer(status="302 Found", Location="/org/net/resolve/again/ssld.json", ETag='"b"')
    hub.answers = {
        "info": {".*": again},
        "HEAD": {INFO: RELEASE, ".*": again},
        "GET": {INFO: RELEASE, "HEAD .*": file('"b"'), ".*": again},
    }[where]
    with pytest.raises(zoo.InputError, match="redirects"):
        pull(REPO, tmp_path / "out")
    assert len(hub.requests) < 100


def test_cut_off_and_endless_files_are_one_sentence(hub, tmp_path, monkeypatch):
    head = {INFO: RELEASE, HEAD_MANIFEST: file('"b"', b" " * 100)}
    hub.answers = head | {GET_MANIFEST: file('"b"', b"{", Content_Length="100")}
    with pytest.raises(zoo.InputError, match="org/net"):
        pull(REPO, tmp_path / "out")
    monkeypatch.setattr(zoo.fetch, "ANSWER_BYTES", 1000)
    endless = [file('"b"', b"", Content_Length=""), *[b" " * 500] * 5]
    hub.answers = head | {GET_MANIFEST: endless}
    with pytest.raises(zoo.InputError, match="sends more than the 1,000 bytes"):
        pull(REPO, tmp_path / "out")
    packed = file('"b"', b"x" * 500, Content_Encoding="gzip")
    hub.answers = {".*": packed}
    with pytest.raises(zoo.InputError, match="sends more than the 1 bytes"):
        pull(REPO, tmp_path / "out")


def test_a_server_says_not_how_long_the_client_sleeps(hub: HostileHub, tmp_path, monkeypatch):
    from huggingface_hub.utils import _http

    slept: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", slept.append)
    monkeypatch.setattr(zoo.fetch, "SECONDS", 60)
    limited = {"Retry_After": "99999", "RateLimit": '"api";r=0;t=99999'}
    hub.answers = {INFO: RELEASE, ".*": answer(status="429 Too Many", **limited)}
    with pytest.raises(zoo.InputError, match="429.*wait some minutes"):
        pull(REPO, tmp_path / "out")
    assert slept and max(slept) < 10


@pytest.mark.parametrize("how", ["silent", "headers", "body"])
def test_published_weights_from_what_stands_still_are_given_up(hub, tmp_path, how):
    hub.answers = SLOW[how](hub)
    entry = dataclasses.replace(
        zoo.find("mobilenetv3_small_035_ssld"), url=f"{hub.url}/x.pdparams", timm_weights=None
    )
    with pytest.raises(zoo.InputError, match="cannot be fetched.*too slow.*SSLD_ZOO_DIR"):
        weights_file(entry, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.pdparams"))


@pytest.mark.parametrize(
    "answers",
    [
        lambda hub: SLOW["silent"](hub),
        lambda hub: {"HEAD .*": file('"b"', b"[1]"), "GET .*": file('"b"', b"[1]")},
        lambda hub: {".*": file('"../../../../victim"', b"{}")},
    ],
)
def test_a_teacher_from_such_a_hub_is_one_sentence(hub: HostileHub, tmp_path, answers):
    hub.answers = answers(hub)
    with pytest.raises(InputError, match="teacher.*(hf-hub:org/net|config.json)") as error:
        open_network("teacher", arch="hf-hub:org/net", pretrained=True)
    assert "\n" not in str(error.value) and not (tmp_path / "victim").exists()


def test_nothing_is_left_of_a_watch(hub: HostileHub, tmp_path):
    import threading

    from huggingface_hub import get_session

    hub.answers = {".*": None}
    with pytest.raises(zoo.InputError):
        pull(REPO, tmp_path / "out")
    assert "watch" not in [thread.name for thread in threading.enumerate()]
    assert not any("Watch" in str(hook) for hook in get_session().event_hooks["request"])
