"""The loopback hub is what the real client takes for one."""

from __future__ import annotations

import hashlib
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
from hub_server import Faults, Hub
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

REPO = "org/net"
FILES = {"README.md": b"# A net\n", "deep/model.safetensors": b"\0weights" * 40_000}


@pytest.fixture
def api(hub: Hub, tmp_path: Path) -> HfApi:
    client = HfApi(endpoint=hub.url, token="hf_writer")
    client.create_repo(REPO)
    for name, content in FILES.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    client.upload_folder(repo_id=REPO, folder_path=tmp_path / "up")
    return client


def test_a_folder_goes_up_and_comes_down(hub: Hub, api: HfApi):
    assert hub.files(REPO) == FILES
    folder = Path(api.snapshot_download(REPO))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert folder.name == api.model_info(REPO).sha
    (weights,) = api.get_paths_info(REPO, ["deep/model.safetensors"])
    assert weights.lfs.sha256 == hashlib.sha256(FILES["deep/model.safetensors"]).hexdigest()
    assert weights.size == len(FILES["deep/model.safetensors"])


def test_commits_are_kept_and_tags_and_branches_name_them(hub: Hub, api: HfApi):
    first = api.model_info(REPO).sha
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="side/way")
    api.delete_file("README.md", REPO)
    assert api.model_info(REPO, revision="v1").sha == first != api.model_info(REPO).sha
    assert "README.md" not in hub.files(REPO) and hub.files(REPO, "side/way") == FILES
    assert hub.files(REPO, first) == FILES


def test_tokens_and_doors(hub: Hub, api: HfApi):
    hub.repos["org/closed"] = hub.create("org/closed", private=True)
    nobody, stranger = HfApi(hub.url, token=False), HfApi(hub.url, token="hf_stranger")
    with pytest.raises(RepositoryNotFoundError):
        nobody.model_info("org/closed")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        stranger.model_info(REPO)
    reader = HfApi(hub.url, token="hf_reader")
    assert reader.model_info("org/closed").private
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.delete_file("README.md", REPO)
    hub.repos[REPO].gated = True
    with pytest.raises(GatedRepoError):
        reader.hf_hub_download(REPO, "README.md")
    assert hub.files(REPO) == FILES


def test_content_is_not_stored_under_a_wrong_name(hub: Hub):
    request = urllib.request.Request(f"{hub.url}/upload/{'0' * 64}", b"other", method="PUT")
    with pytest.raises(HTTPError) as error:
        urllib.request.urlopen(request)
    error.value.close()
    assert error.value.code == 400 and list(hub.storage.iterdir()) == []


def test_a_part_of_a_file_is_served_and_one_byte_of_it_changed(hub: Hub, api: HfApi):
    weights = FILES["deep/model.safetensors"]
    url = f"{hub.url}/{REPO}/resolve/main/deep/model.safetensors"

    def get(start: int) -> bytes:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 206
            return answer.read()

    assert get(100) == weights[100:]
    hub.faults = Faults(corrupt={"deep/model.safetensors"})
    changed = get(0)
    assert len(changed) == len(weights)
    assert sum(a != b for a, b in zip(changed, weights, strict=True)) == 1


def test_a_stopped_hub_leaves_no_thread_and_no_open_port(tmp_path: Path):
    before = set(threading.enumerate())
    server = Hub(tmp_path / "storage")
    with socket.create_connection(("127.0.0.1", server.server.server_port)) as idle:
        idle.sendall(b"GET /api/models/org/net HTTP/1.1\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 401")  # and is kept alive
        server.stop()
        while idle.recv(4096):
            pass
    assert not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.server.server_port))
