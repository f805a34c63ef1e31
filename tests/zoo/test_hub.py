"""Publishing and pulling through the real client and a real server, also where both misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Faults, Hub, contents, write

from zoo.errors import InputError
from zoo.publish.hub import publish, pull
from zoo.release import MANIFEST

# how huggingface_hub itself calls httpx when it uploads
REPO = "org/net"


def client(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python in a process of its own, for what is killed or must not have our modules."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def kill_half_way(hub: Hub, process: subprocess.Popen[str]) -> None:
    assert hub.half_way.wait(30), process.communicate(timeout=1)
    process.kill()
    process.communicate()
    assert process.returncode == -9  # it was not done
    hub.faults = Faults()


def cached_weights() -> list[Path]:
    from huggingface_hub import constants

    return list(Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/model.safetensors"))


@pytest.mark.usefixtures("token")
def test_what_was_published_is_what_is_pulled(hub: Hub, release: Path, tmp_path: Path, capsys):
    published = publish(release, REPO)

    assert hub.files(REPO) == contents(release)
    assert len(published.revision) == 40
    assert published.url == f"{hub.url}/{REPO}/tree/{published.revision}"
    assert {change.kind for change in published.changed} == {"added"}
    assert {change.name for change in published.changed} == set(contents(release))

    out = pull(f"{REPO}@{published.revision}", tmp_path / "deep" / "out")
    assert contents(out) == contents(release)
    assert os.listdir(out.parent) == ["out"]  # and no temporary folder beside it
    assert f"{REPO}@{published.revision}" in capsys.readouterr().out


@pytest.mark.usefixtures("token")
def test_a_branch_and_a_tag_are_pulled_as_the_commit_that_they_are(hub, release, tmp_path, capsys):
    first = publish(release, REPO).revision
    hub.repos[REPO].refs["v1.0"] = first
    old = contents(release)
    write(release, {"README.md": b"# newer\n"})
    second = publish(release, REPO).revision

    assert contents(pull(f"{REPO}@v1.0", tmp_path / "old")) == old
    assert contents(pull(REPO, tmp_path / "new")) == contents(release)
    told = capsys.readouterr().out
    assert f"{REPO}@{first}" in told and f"{REPO}@{second}" in told


@pytest.mark.usefixtures("token")
def test_publishing_again_makes_no_commit_and_uploads_nothing(hub: Hub, release: Path, capsys):
    first = publish(release, REPO)
    commits, hub.requests[:] = dict(hub.repos[REPO].commits), []

    again = publish(release, REPO)

    assert again.changed == () and again.revision == first.revision
    assert hub.repos[REPO].commits == commits
    assert {request.method for request in hub.requests} == {"GET"}
    assert "already holds this release" in capsys.readouterr().out


@pytest.mark.usefixtures("token")
def test_only_what_differs_goes_up_and_only_what_was_ours_goes_away(hub: Hub, release: Path):
    publish(release, REPO)
    hub.put(REPO, {"notes-of-others.txt": b"keep me", "logo.png": b"\x89PNG\0"})
    (release / ".eval_results" / "imagenet.yaml").unlink()
    write(release, {"README.md": b"# other\n", "curves.png": b"\x89PNG\0curves"})
    commits, hub.requests[:] = len(hub.repos[REPO].commits), []

    changed = publish(release, REPO).changed

    assert {(change.kind, change.name) for change in changed} == {
        ("added", "curves.png"),
        ("changed", "README.md"),
        ("changed", MANIFEST),
        ("removed", ".eval_results/imagenet.yaml"),
    }
    others = {"notes-of-others.txt": b"keep me", "logo.png": b"\x89PNG\0"}
    assert hub.files(REPO) == contents(release) | others
    assert len(hub.repos[REPO].commits) == commits + 1
    assert sum(request.method == "PUT" for request in hub.requests) == 1  # not the weights


@pytest.mark.usefixtures("token")
def test_a_list_on_the_hub_that_is_wrong_removes_nothing_of_the_hubs_own(hub, release, capsys):
    publish(release, REPO)
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["files"][".gitattributes"] = manifest["files"]["config.json"]
    for text in (json.dumps(manifest), "{"):
        sha = hub.put(REPO, {MANIFEST: text.encode(), "notes.txt": b"keep me"})
        attributes = hub.repos[REPO].commits[sha][".gitattributes"]
        publish(release, REPO)
        assert hub.files(REPO) == contents(release) | {"notes.txt": b"keep me"}
        now = hub.repos[REPO].refs["main"]
        assert hub.repos[REPO].commits[now][".gitattributes"] == attributes
    assert "is damaged, so that no file there is removed" in capsys.readouterr().out


@pytest.mark.usefixtures("token")
def test_a_dry_run_shows_the_difference_and_changes_nothing(hub: Hub, release: Path, capsys):
    fresh = publish(release, REPO, dry_run=True)
    assert hub.repos == {} and fresh.revision == ""
    assert "+ model.safetensors (300,000 bytes added)" in capsys.readouterr().out

    publish(release, REPO)
    before = contents(release)
    (release / ".eval_results" / "imagenet.yaml").unlink()
    write(release, {"README.md": before["README.md"].replace(b"71", b"72")})
    commits, hub.requests[:] = len(hub.repos[REPO].commits), []
    capsys.readouterr()

    told = publish(release, REPO, dry_run=True)

    shown = capsys.readouterr().out
    assert "-Top-1 71.0 % é\n+Top-1 72.0 % é" in shown
    assert "- .eval_results/imagenet.yaml (12 bytes removed)" in shown
    assert "model.safetensors (" not in shown
    assert {change.kind for change in told.changed} == {"changed", "removed"}
    assert hub.files(REPO) == before and len(hub.repos[REPO].commits) == commits
    assert {request.method for request in hub.requests} == {"GET", "HEAD"}


@pytest.mark.usefixtures("token")
def test_a_release_that_was_changed_is_not_published(hub: Hub, release: Path):
    flip(release / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors was changed"):
        publish(release, REPO)
    assert hub.repos == {} and hub.requests == []


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.usefixtures("token")
def test_weights_changed_between_check_and_commit_are_noticed(hub, release, monkeypatch):
    from huggingface_hub import HfApi

    real = HfApi.create_commit

    def late(self, repo_id, operations, **options):
        flip(release / "model.safetensors")
        return real(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(InputError, match="does not have the model.safetensors"):
        publish(release, REPO)


@pytest.mark.usefixtures("token")
def test_two_who_publish_at_once_do_not_mix(hub: Hub, release: Path, monkeypatch):
    from huggingface_hub import HfApi

    publish(release, REPO)
    write(release, {"README.md": b"# ours\n"})
    real = HfApi.create_commit

    def late(self, repo_id, operations, **options):
        hub.put(REPO, {"README.md": b"# theirs\n"})
        return real(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(InputError, match="someone else changed it"):
        publish(release, REPO)
    assert hub.files(REPO)["README.md"] == b"# theirs\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", MANIFEST])
def test_damage_of_the_same_size_is_caught_and_a_repeat_mends_it(
    hub, release, tmp_path, name, token
):
    publish(release, REPO)
    hub.faults.corrupt.add(name)
    out = tmp_path / "out"

    with pytest.raises(InputError, match=f"{name} of .* is damaged.*instead of") as error:
        pull(REPO, out)

    assert "\n" not in str(error.value)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    hub.faults = Faults()
    assert contents(pull(REPO, out)) == contents(release)


@pytest.mark.usefixtures("token")
def test_damage_in_the_cache_is_caught_and_a_repeat_mends_it(hub, release, tmp_path):
    revision = publish(release, REPO).revision
    pull(REPO, tmp_path / "first")
    (weights,) = cached_weights()
    flip(weights.resolve())

    with pytest.raises(InputError, match="removed: repeat"):
        pull(f"{REPO}@{revision}", tmp_path / "second")

    assert not weights.resolve().exists()
    assert contents(pull(f"{REPO}@{revision}", tmp_path / "second")) == contents(release)


@pytest.mark.usefixtures("token")
def test_a_whole_commit_in_the_cache_needs_no_hub(hub: Hub, release: Path, tmp_path: Path):
    revision = publish(release, REPO).revision
    pull(REPO, tmp_path / "first")
    hub.requests.clear()
    assert contents(pull(f"{REPO}@{revision}", tmp_path / "out")) == contents(release)
    assert hub.requests == []
    hub.stop()
    with pytest.raises(InputError, match="no connection for org/net@main .*check the network"):
        pull(f"{REPO}@main", tmp_path / "other")


@pytest.mark.usefixtures("token")
def test_pulling_again_is_up_to_date_and_another_folder_is_never_touched(
    hub, release, tmp_path, capsys
):
    publish(release, REPO)
    out = pull(REPO, tmp_path / "out")
    capsys.readouterr()
    assert pull(REPO, out) == out
    assert "is up to date" in capsys.readouterr().out

    flip(out / "model.safetensors")
    other = tmp_path / "photographs"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    hub.requests.clear()
    for folder in (other, out):
        before = contents(folder)
        with pytest.raises(InputError, match="is not empty: give a new folder"):
            pull(REPO, folder)
        assert contents(folder) == before
    (tmp_path / "empty").mkdir()
    assert contents(pull(REPO, tmp_path / "empty")) == contents(release)


@pytest.mark.usefixtures("token")
def test_an_upload_killed_half_way_leaves_main_and_a_repeat_completes_it(hub, release):
    old = hub.create(REPO).refs["main"]
    hub.faults = Faults(slow=0.2)
    code = "import sys; from pathlib import Path; from zoo.publish.hub import publish; "
    process = client(code + "publish(Path(sys.argv[1]), sys.argv[2])", release, REPO)
    kill_half_way(hub, process)
    assert hub.repos[REPO].refs["main"] == old and hub.files(REPO) == {}

    publish(release, REPO)
    assert hub.files(REPO) == contents(release)
    assert len(hub.repos[REPO].commits) == 2


@pytest.mark.usefixtures("token")
def test_a_download_killed_half_way_leaves_no_folder_and_a_repeat_completes_it(
    hub, release, tmp_path
):
    publish(release, REPO)
    hub.half_way.clear()
    hub.faults = Faults(slow=0.2)
    out = tmp_path / "out"
    code = "import sys; from pathlib import Path; from zoo.publish.hub import pull; "
    process = client(code + "pull(sys.argv[1], Path(sys.argv[2]))", REPO, out)
    kill_half_way(hub, process)
    assert not out.exists() and not list(tmp_path.glob(".out*"))

    assert contents(pull(REPO, out)) == contents(release)


@pytest.mark.usefixtures("token")
def test_connections_that_break_are_resumed_up_and_down(hub, release, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client, between its tries
    hub.faults = Faults(cut_after=100_000)
    publish(release, REPO)
    assert hub.faults.cuts == 0 and hub.files(REPO) == contents(release)

    hub.faults = Faults(cut_after=100_000)
    assert contents(pull(REPO, tmp_path / "out")) == contents(release)
    assert hub.faults.cuts == 0


TIMM_ALONE = """
import sys, timm, torch
image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
for _ in range(2):
    model = timm.create_model(sys.argv[1], pretrained=True).eval()
    with torch.inference_mode():
        print(repr(model(image).double().sum().item()), flush=True)
    sys.stdin.readline()
ours = [name for name in sys.modules if name.split(".")[0] in ("ssld", "zoo", "downstream")]
assert not ours, ours
"""


@pytest.mark.usefixtures("token")
def test_plain_timm_loads_a_published_release_and_once_cached_needs_no_hub(hub, tmp_path):
    import timm
    import torch
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    folder = tmp_path / "release"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    save_config_for_hf(model, folder / "config.json")
    write(folder, {})
    revision = publish(folder, REPO).revision
    with torch.inference_mode():
        image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
        expected = model(image).double().sum().item()

    with client(TIMM_ALONE, f"hf-hub:{REPO}@{revision}") as process:
        assert process.stdin and process.stdout and process.stderr
        first = process.stdout.readline()
        hub.requests.clear()
        hub.stop()
        second, errors = process.communicate("go on\n\n", timeout=60)
    assert process.returncode == 0, errors
    assert [float(first), float(second)] == pytest.approx([expected] * 2, rel=1e-5)
    assert hub.requests == []
