"""From what the user names to a classifier with every tensor loaded, and whether its weights are
distilled, as their metadata says: the zoo's catalogue, `ssld.json` of a release, `run.json`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub

from downstream.backbone.config import BackboneConfig
from ssld.common.errors import InputError
from ssld.common.files import read_object, reading
from ssld.models.classifier import Classifier
from ssld.models.opening import is_weights, open_network
from zoo.catalog import catalog
from zoo.fetch import ANSWER_BYTES, FAILURES, watched
from zoo.release import MANIFEST

_LOADER = "timm.models._builder"
_LOGGED = re.compile(r"(Missing|Unexpected) keys \((.*?)\)", re.DOTALL)
_HUB = re.compile(r"hf[-_]hub:([^@]+)(?:@(.+))?")


def open_classifier(config: BackboneConfig) -> Classifier:
    """The classifier that `config` names, with its own head and preprocessing.

    Raises:
        InputError: unknown name, unreachable weights, and weights that lack a tensor of it, have
            one too many or one of another shape, or one that is not finite. Only tensors of the
            head may be missing, and only where `args.num_classes` asks for another one.
    """
    name, checkpoint = _place(config)
    if checkpoint and (Path(checkpoint) / "model" / "config.json").is_file():
        raise InputError(
            f"backbone {checkpoint} is the run of a detector or segmenter, whose backbone cannot "
            "be taken out: give the network that it started from (backbone in its config.yaml)"
        )
    published = config.pretrained and checkpoint is None
    with _naming(), _lenient_loads() as reported:
        network = open_network(
            "backbone", arch=name, args=config.args, pretrained=published, checkpoint=checkpoint
        )
    _check_loaded(network, reported, name or str(checkpoint))
    if checkpoint and not config.pretrained:
        network.model = create(*architecture(network.model))
    return network


def create(name: str, args: Mapping[str, Any]) -> Any:
    """The architecture with random weights.

    Raises:
        InputError: timm does not know it, or does not take these arguments.
    """
    with _naming():
        return open_network("backbone", arch=name, args=args).model


def architecture(model: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of `timm.create_model` that build the same network; timm keeps both, and
    the number of classes is left out."""
    args = {k: v for k, v in model._model_args.items() if k != "num_classes"}
    return str(model.pretrained_cfg["architecture"]), args


def is_distilled(config: BackboneConfig) -> bool:
    """Whether the metadata of the weights says that a teacher taught them; no metadata, no.

    That are weights of the zoo's catalogue, under its own names or timm's; releases that
    `ssld zoo` made from a distillation or from a published file; run folders of ssld whose run, or
    one that it went on from, had a teacher, and the `student/` in them.

    Raises:
        InputError: a damaged `ssld.json` or `run.json`.
    """
    if not config.pretrained:
        return False
    name, checkpoint = _place(config)
    if checkpoint:
        return _folder_is_distilled(Path(checkpoint))
    name = str(name)
    if name.startswith("local-dir:"):
        return _folder_is_distilled(Path(name.removeprefix("local-dir:")))
    entries = catalog().values()
    published = {e.arch_name for e in entries} | {str(e.timm_weights) for e in entries}
    hub = _HUB.fullmatch(name)
    known = hub[1].removeprefix("timm/") if hub else name
    if known in published or known.partition(".")[0] in published:
        return True
    return bool(hub and not hub[1].startswith("timm/") and _hub_is_distilled(hub[1], hub[2]))


def _place(config: BackboneConfig) -> tuple[str | None, str | None]:
    """-> name, checkpoint: a name that is a path of weights is a checkpoint."""
    name, checkpoint = config.name, config.checkpoint
    if not (name or checkpoint):
        raise InputError("backbone.name is missing: name a network, for example resnet50d")
    if name and ":" not in name and (Path(name).is_dir() or is_weights(Path(name))):
        if checkpoint:
            raise InputError(
                f"backbone.name {name} and backbone.checkpoint {checkpoint} are both weights: "
                "leave one of them out"
            )
        return None, name
    if name and ":" not in name and "/" in name:
        raise InputError(
            f"backbone.name {name}: no such folder; give a run folder, a name of timm or the zoo, "
            "hf-hub:org/name or local-dir:folder"
        )
    return name, checkpoint


@contextmanager
def _naming() -> Iterator[None]:
    """`open_network` speaks of `arch`, the settings here of `name`."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("backbone.arch", "backbone.name")) from error


class _Record(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.reported: dict[str, set[str]] = {"Missing": set(), "Unexpected": set()}

    def emit(self, record: logging.LogRecord) -> None:
        for kind, names in _LOGGED.findall(record.getMessage()):
            self.reported[kind] |= set(names.split(", "))


@contextmanager
def _lenient_loads() -> Iterator[dict[str, set[str]]]:
    """What timm's own loading leaves out: it is not strict for some architectures (DLA), nor when
    another number of classes is asked for, and says so in its log alone."""
    logger, record = logging.getLogger(_LOADER), _Record()
    before = logger.level, logger.propagate
    logger.addHandler(record)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield record.reported
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logger.removeHandler(record)


def _check_loaded(network: Classifier, reported: Mapping[str, set[str]], name: str) -> None:
    cfg: Any = network.model.pretrained_cfg
    heads = cfg.get("classifier") or ()
    heads = tuple(f"{x}." for x in ([heads] if isinstance(heads, str) else heads))
    wrong = (
        ("Missing", "lack tensors of it"),
        ("Unexpected", "hold tensors that it does not have"),
    )
    for kind, problem in wrong:
        names = sorted(x for x in reported[kind] if not (heads and x.startswith(heads)))
        if names:
            raise InputError(
                f"the weights of backbone {name} {problem} ({', '.join(names[:3])}"
                f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}): give weights of this "
                "very architecture"
            )
    for key, tensor in network.model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"the weights of backbone {name} diverged, {key} is not finite: give others"
            )


def _folder_is_distilled(folder: Path) -> bool:
    if folder.name == "model.safetensors":  # of an export
        folder = folder.parent
    if not folder.is_dir():
        return False
    run = folder.parent if folder.name == "student" else folder
    with reading(run, "restore its ssld.json or run.json, or delete it"):
        return _release_is_distilled(_facts(folder / MANIFEST)) or _taught(_facts(run / "run.json"))


def _hub_is_distilled(repo: str, revision: str | None) -> bool:
    try:
        with watched(f"hf-hub:{repo}", limit=ANSWER_BYTES):
            file = Path(huggingface_hub.hf_hub_download(repo, MANIFEST, revision=revision))
    except FAILURES:
        return False  # nobody's release: most of the hub
    return _release_is_distilled(_facts(file))


def _facts(file: Path) -> dict[str, Any]:
    try:
        return read_object(file, "restore it or delete it")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error}): restore it or delete it") from error


def _release_is_distilled(manifest: Mapping[str, Any]) -> bool:
    """A converted file of another name than a published one says nothing of its origin."""
    published = manifest.get("kind") == "converted" and "by" in manifest.get("provenance", {})
    return published or manifest.get("kind") == "distilled"


def _taught(facts: Mapping[str, Any]) -> bool:
    """Whether the run of this `run.json` had a teacher, or one that it went on from."""
    start = facts.get("started_from") or {}
    before = {**start.get("facts", {}), "started_from": start.get("started_from")}
    return bool(facts.get("teacher_sha256")) or bool(start and _taught(before))
