"""From a name to verified weights: folder, address, hub, cache and pins."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import reference
import timm
import torch
from safetensors.torch import load_file

import zoo
from zoo.publish.converted import release_of
from zoo.weights import weights_file

NAME, CLASS = "mobilenetv3_small_035_ssld", "MobileNetV3_small_x0_35"
FILE = f"{CLASS}_ssld_pretrained.pdparams"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with one published file."""
    folder = tmp_path_factory.mktemp("published")
    reference.write_pdparams(CLASS, folder / FILE)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SSLD_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSLD_ZOO_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a request was made")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def site(published):
    """Serves the folder over HTTP; `requests` has the paths asked for."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, directory=str(published), **kwargs)

        def do_GET(self) -> None:
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def entry(**changes):
    """The catalogue's entry with other fields."""
    import dataclasses

    return dataclasses.replace(zoo.find(NAME), **changes)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.from_numpy(reference.INPUT))


def test_one_line_loads_converts_and_caches(published, cache, monkeypatch, no_network) -> None:
    monkeypatch.setenv("SSLD_ZOO_DIR", str(published))
    first = logits(timm.create_model(NAME, pretrained=True))
    expected = torch.from_numpy(reference.logits(CLASS))
    torch.testing.assert_close(first, expected, rtol=0, atol=1.5e-5 * float(expected.std()))
    monkeypatch.delenv("SSLD_ZOO_DIR")  # from now on only the cache has it
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), first)
    assert (cache / NAME / "model.safetensors").is_file()


def test_other_classes_channels_and_features_start_from_the_weights(
    published, cache, no_network
) -> None:
    weights_file(zoo.find(NAME), folder=published)
    weights = load_file(cache / NAME / "model.safetensors")
    model = timm.create_model(NAME, pretrained=True, num_classes=7, in_chans=1)
    assert model.num_classes == 7 and model.conv_stem.weight.shape[1] == 1
    assert torch.equal(model.conv_head.weight, weights["conv_head.weight"])
    pyramid = zoo.backbone(NAME, out_indices=(1, 2, 3))
    state = pyramid.state_dict()
    assert torch.equal(state["conv_stem.weight"], weights["conv_stem.weight"])
    assert pyramid.feature_info.reduction() == [4, 8, 16]


def test_the_first_download_is_pinned_and_a_warm_cache_asks_for_nothing(site, cache) -> None:
    address, requests = site
    served = entry(url=f"{address}/{FILE}")
    file = weights_file(served)
    assert requests == [f"/{FILE}"]
    pin = json.loads((cache / f"{NAME}.pin.json").read_text())
    assert pin["source"] == served.url and len(pin["source_sha256"]) == 64
    assert weights_file(served) == file and requests == [f"/{FILE}"]


def test_other_content_under_a_pinned_name_is_refused(published, cache, tmp_path) -> None:
    file = weights_file(zoo.find(NAME), folder=published)
    before = file.read_bytes()
    shutil.rmtree(cache / NAME)
    changed = tmp_path / "changed"
    changed.mkdir()
    weights = {k: reference.fill(k, s) for k, s in reference.shapes(CLASS).items()}
    weights["fc.bias"] = weights["fc.bias"] + 1
    (changed / FILE).write_bytes(pickle.dumps(weights, protocol=2))
    with pytest.raises(zoo.InputError, match="is pinned by .*pin.json"):
        weights_file(zoo.find(NAME), folder=changed)
    assert not (cache / NAME).exists()
    assert weights_file(zoo.find(NAME), folder=published).read_bytes() == before


def test_a_changed_cached_file_is_refused(published, cache) -> None:
    file = weights_file(zoo.find(NAME), folder=published)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(zoo.InputError, match="is pinned by"):
        timm.create_model(NAME, pretrained=True)


def test_a_file_that_is_not_the_catalogues_is_refused(published, cache) -> None:
    with pytest.raises(zoo.InputError, match="is pinned by the catalogue"):
        weights_file(entry(sha256="0" * 64), folder=published)
    assert not (cache / NAME).exists() and not (cache / f"{NAME}.pin.json").exists()


def test_weights_of_another_class_are_refused(cache, tmp_path) -> None:
    reference.write_pdparams("PPLCNet_x0_25", tmp_path / FILE)
    with pytest.raises(zoo.InputError, match="its shapes are those of PPLCNet_x0_25"):
        weights_file(zoo.find(NAME), folder=tmp_path)
    assert not (cache / NAME).exists()


@pytest.mark.parametrize("lies", ["nowhere", "somewhere"])
def test_a_folder_without_the_file_is_an_error_and_nothing_is_downloaded(
    lies, tmp_path, cache, monkeypatch, no_network
) -> None:
    (tmp_path / "somewhere").mkdir()
    monkeypatch.setenv("SSLD_ZOO_DIR", str(tmp_path / lies))
    with pytest.raises(zoo.InputError, match="SSLD_ZOO_DIR"):
        timm.create_model(NAME, pretrained=True)


def test_no_network_says_what_to_do(cache) -> None:
    with socket.socket() as taken:  # an address that nobody answers
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(zoo.InputError, match="cannot be fetched from .*name that folder in SSLD"):
        weights_file(entry(url=f"http://127.0.0.1:{port}/{FILE}"))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_what_was_never_published_says_so(cache) -> None:
    with pytest.raises(zoo.InputError, match="no weights of resnet200d_ssld were ever published"):
        timm.create_model("resnet200d_ssld", pretrained=True)


def test_a_file_may_lie_under_its_address(published, cache, tmp_path) -> None:
    """Two published files have the same name in different folders."""
    wanted = zoo.find(NAME)
    place = tmp_path / Path(wanted.url.split("/", 3)[3])
    place.parent.mkdir(parents=True)
    shutil.copy(published / FILE, place)
    (tmp_path / FILE).write_bytes(b"another file of that name")
    assert weights_file(wanted, folder=tmp_path).is_file()


def test_a_release_in_the_folder_is_verified_and_equals_the_published_file(
    published, cache, tmp_path, monkeypatch
) -> None:
    """What a bundle brings is the same weights, so that the pin of the first use holds."""
    release_of(NAME, tmp_path / "site" / NAME, weights_dir=published)
    shutil.rmtree(cache / NAME)
    monkeypatch.setenv("SSLD_ZOO_DIR", str(tmp_path / "site"))
    assert torch.isfinite(logits(timm.create_model(NAME, pretrained=True))).all()
    weights = tmp_path / "site" / NAME / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    shutil.rmtree(cache / NAME)
    with pytest.raises(zoo.InputError, match="was changed: its sha256"):
        timm.create_model(NAME, pretrained=True)


def test_a_warm_cache_that_cannot_be_written_is_enough(published, cache, monkeypatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    weights_file(zoo.find(NAME), folder=published)
    monkeypatch.setattr("zoo.weights.FileLock", read_only)
    assert timm.create_model(NAME, pretrained=True).num_classes == 1000
    with pytest.raises(zoo.InputError, match="Read-only file system.*SSLD_ZOO_CACHE"):
        weights_file(zoo.find("lcnet_050_ssld"), folder=published)


def test_a_cache_that_is_a_file_is_said(published, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(zoo.InputError, match="cannot be written.*SSLD_ZOO_CACHE"):
        weights_file(zoo.find(NAME), cache=tmp_path / "file", folder=published)


def test_others_may_read_the_cache_and_leftovers_go(published, cache) -> None:
    left = cache / f".{NAME}~killed"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    file = weights_file(zoo.find(NAME), folder=published)
    assert file.stat().st_mode & 0o777 == (cache / f"{NAME}.pin.json").stat().st_mode & 0o777
    assert not left.exists()


def test_a_name_that_two_weights_have_needs_its_path(cache, tmp_path) -> None:
    (tmp_path / "ResNet34_vd_ssld_pretrained.pdparams").write_bytes(b"which one?")
    for name in ("resnet34d_ssld", "resnet34d_ssld.dygraph"):
        path = zoo.find(name).url.split("/", 3)[3]
        with pytest.raises(zoo.InputError, match=f"has neither {path} nor a folder {name}"):
            weights_file(zoo.find(name), folder=tmp_path)


def test_the_cache_of_one_call_may_be_another(published, cache, tmp_path, monkeypatch) -> None:
    zoo.backbone(NAME, weights_dir=published, cache_dir=tmp_path / "a")
    assert (tmp_path / "a" / NAME).is_dir() and not cache.exists()
    monkeypatch.setenv("SSLD_ZOO_DIR", str(published))
    timm.create_model(NAME, pretrained=True, cache_dir=tmp_path / "b")
    assert (tmp_path / "b" / NAME).is_dir() and not cache.exists()


def test_timms_own_metadata_of_a_name_does_not_lead_past_the_checks(
    published, cache, monkeypatch, no_network
) -> None:
    monkeypatch.setenv("SSLD_ZOO_DIR", str(published))
    config = timm.get_pretrained_cfg(NAME)
    timm.create_model(NAME, pretrained=True, pretrained_cfg=config)
    assert (cache / f"{NAME}.pin.json").is_file()


def test_numbers_that_are_not_finite_are_refused(cache, tmp_path) -> None:
    weights = {k: reference.fill(k, s) for k, s in reference.shapes(CLASS).items()}
    weights["fc.bias"][3] = float("nan")
    (tmp_path / FILE).write_bytes(pickle.dumps(weights, protocol=2))
    with pytest.raises(zoo.InputError, match="'classifier.bias' is not finite"):
        weights_file(zoo.find(NAME), folder=tmp_path)


def test_a_server_that_talks_nonsense_is_said(cache) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{FILE}"
        with pytest.raises(zoo.InputError, match=f"cannot be fetched from {url}"):
            weights_file(entry(url=url))
        thread.join()


@pytest.mark.parametrize("how", ["lists nothing", "holds more"])
def test_a_release_that_does_not_list_all_that_it_holds_is_refused(
    how, published, cache, tmp_path
) -> None:
    folder = tmp_path / "site" / NAME
    release_of(NAME, folder, weights_dir=published)
    if how == "holds more":
        (folder / "evil.py").write_text("")
    else:
        manifest = json.loads((folder / "ssld.json").read_text())
        (folder / "ssld.json").write_text(json.dumps({**manifest, "files": {}}))
    shutil.rmtree(cache / NAME)
    with pytest.raises(zoo.InputError, match="does not list"):
        weights_file(zoo.find(NAME), folder=tmp_path / "site")


def test_the_weights_of_a_run_or_hub_folder_are_not_the_catalogues(cache, tmp_path) -> None:
    """An architecture of ours in somebody's own folder loads that folder's weights."""
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    mine = timm.create_model(NAME, num_classes=4)
    save_config_for_hf(mine, str(tmp_path / "config.json"))
    save_file(mine.state_dict(), tmp_path / "model.safetensors")
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(again.classifier.weight, mine.classifier.weight)
    assert not cache.exists()
