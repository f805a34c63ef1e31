"""What the hub side of the zoo refuses, in one sentence each, and what it tells nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import Hub, write

from zoo.errors import InputError
from zoo.publish.hub import publish, pull, split_repo
from zoo.release import MANIFEST

# how huggingface_hub itself calls httpx when it uploads
REPO = "org/net"


def test_no_one_sees_the_token(hub, release, tmp_path, monkeypatch, capfd):
    secret = "hf_SECRETsecretSECRETsecretSECRET"
    hub.tokens[secret] = "write"
    publish(release, "org/private", private=True, token=secret)
    pull("org/private", tmp_path / "out", token=secret)
    assert hub.repos["org/private"].private
    kept = b"".join(path.read_bytes() for path in hub.storage.iterdir())
    assert secret.encode() not in kept and secret not in str(hub.repos)
    assert any(request.authorised for request in hub.requests)
    # the network of large files gets no token
    assert not any(
        request.authorised for request in hub.requests if request.path.startswith("/content/")
    )

    del hub.tokens[secret]
    hub.repos["org/mirror"] = hub.repos.pop("org/private")
    errors = []
    for action in (
        lambda: publish(release, "org/mirror", token=secret),
        lambda: publish(release, "org/mirror", token=secret, dry_run=True),
        lambda: pull("org/mirror", tmp_path / "other", token=secret),
    ):
        with pytest.raises(InputError, match="401.*give a valid token") as error:
            action()
        errors.append(str(error.value))
    told = capfd.readouterr()
    assert all("\n" not in error for error in errors)
    assert secret not in "".join(errors) + told.out + told.err


def test_a_token_or_password_that_an_error_quotes_is_not_repeated(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    def quoting(self, repo_id, **options):
        raise OSError(f"GET {self.endpoint}/x with Bearer {self.token}\nfailed")

    monkeypatch.setenv("HF_ENDPOINT", "https://me:password@hub.example/")
    monkeypatch.setattr(HfApi, "model_info", quoting)
    with pytest.raises(InputError, match="GET https://hub.example/x with Bearer ... failed") as err:
        pull(REPO, tmp_path / "out", token="hf_secret")
    assert "hf_secret" not in str(err.value) and "password" not in str(err.value)
    assert err.value.__suppress_context__  # a traceback does not quote it either


def test_a_release_that_holds_the_token_is_refused(hub: Hub, release: Path, token: str):
    write(
        release,
        {"config.json": json.dumps({"architecture": "test_resnet", "hub_token": token}).encode()},
    )
    with pytest.raises(InputError, match="config.json holds your hub token") as error:
        publish(release, REPO)
    assert token not in str(error.value) and hub.requests == []


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda hub: None, "there is no org/net"),
        (lambda hub: hub.create(REPO, private=True), "or it is private"),
        (lambda hub: setattr(hub.create(REPO), "gated", True), "is gated"),
        (lambda hub: hub.create(REPO), "has no ssld.json; publish it"),
    ],
)
def test_what_cannot_be_pulled_is_one_sentence(hub, tmp_path, arrange, reason):
    arrange(hub)
    with pytest.raises(InputError, match=reason) as error:
        pull(REPO, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_an_unknown_revision_is_one_sentence(hub: Hub, release: Path, tmp_path: Path, token: str):
    publish(release, REPO)
    for revision in ("v9", "0" * 40):
        with pytest.raises(InputError, match=f"no such revision: {REPO}@{revision}"):
            pull(f"{REPO}@{revision}", tmp_path / "out")


def test_what_may_not_be_published_is_one_sentence(hub, release, monkeypatch):
    hub.create(REPO)
    with pytest.raises(InputError, match="a token that may write there"):
        publish(release, REPO, token="hf_reader")
    with pytest.raises(InputError, match="give a valid token by HF_TOKEN"):
        publish(release, "org/new")
    with pytest.raises(InputError, match="exists and is public"):
        publish(release, REPO, token="hf_writer", private=True)
    with pytest.raises(InputError, match="goes to the main branch"):
        publish(release, f"{REPO}@v1", token="hf_writer")
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(InputError, match="HF_ENDPOINT is 'hub.example'"):
        publish(release, REPO)


@pytest.mark.parametrize("name", ["../escaped.txt", "/etc/escaped", "a/../../escaped", "..\\up"])
def test_a_hub_whose_list_names_other_places_writes_nothing(hub, release, tmp_path, name, token):
    publish(release, REPO)
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["config.json"]
    hub.put(REPO, {MANIFEST: json.dumps(manifest).encode(), name: b"evil"})
    with pytest.raises(InputError, match="is not inside the folder"):
        pull(REPO, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("*escaped*")) and not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "text",
    ["", "net", "../net", "org/..", "/org/net", "org/net/", "org//net", "a/b/c", "org\\net",
     "https://huggingface.co/org/net", "org/net.git", "org/n et", "órg/net", "org/net\n",
     "org/net@", "org/net@../main", "org/net@/main", "org/net@a//b", "org/net@v1@v2",
     "org/net@a..b",
     "org/net@-rf", "org/net@a b", "org/net@a\\b", "org/net@main?x=1", "@main"],
)  # fmt: skip
def test_what_is_no_repository_is_refused(text: str):
    with pytest.raises(InputError, match="names no repository on a hub; give org/name"):
        split_repo(text)


def test_repositories_and_revisions_are_told_apart():
    assert split_repo("org/net") == ("org/net", None)
    assert split_repo("Org-1/net_2.x@v1.0") == ("Org-1/net_2.x", "v1.0")
    assert split_repo("org/net@refs/pr/4") == ("org/net", "refs/pr/4")
    assert split_repo(f"org/net@{'a' * 40}") == ("org/net", "a" * 40)
