"""Every name of the catalogue as an architecture of timm's: `timm.create_model("resnet50d_ssld")`.

Where an architecture is plain timm, the model says so (`pretrained_cfg["architecture"]`), and what
is exported from it loads without this package.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import timm
from timm.models import PretrainedCfg, generate_default_cfgs, register_model
from torch import nn

from zoo.catalog import Entry, catalog

Create = Callable[..., nn.Module]

_OURS = ("mobilenet", "lcnet", "resnet", "hrnet", "hgnet")
# timm's names of the first convolution and of the classifier, by the start of the architecture.
_ENDS = (
    ("lcnetv2", "stem.0.conv", "classifier"),
    ("hgnetv2", "stem.stem1.conv", "head.fc"),
    ("hgnet", "stem.stem.0.conv", "head.fc"),
    ("res", "conv1.0", "fc"),
    ("hrnet", "conv1", "classifier"),
    ("se_hrnet", "conv1", "classifier"),
    ("", "conv_stem", "classifier"),
)
_SOURCES = ("file", "url", "state_dict", "hf_hub_id")

# timm looks for the weights of a name in the `default_cfgs` of the module of its function.
default_cfgs: dict[str, Any] = {}
_functions: dict[str, Create] = {}


def architecture(entry: Entry) -> Create:
    """timm's function of the entry's architecture, or ours where timm lacks it."""
    if entry.architecture not in _functions:
        for name in _OURS:
            module = importlib.import_module(f"zoo.architectures.{name}")
            if hasattr(module, entry.architecture):
                _functions[entry.architecture] = getattr(module, entry.architecture)
                break
        else:
            _functions[entry.architecture] = timm.model_entrypoint(entry.architecture)
    return _functions[entry.architecture]


def is_plain(entry: Entry) -> bool:
    """Whether timm alone knows the architecture."""
    return not architecture(entry).__module__.startswith("zoo.")


def cfg_of(entry: Entry) -> PretrainedCfg:
    """What timm wants to know of the weights: preprocessing, classifier, licence."""
    first, classifier = next(ends for start, *ends in _ENDS if entry.architecture.startswith(start))
    return PretrainedCfg(
        url=entry.url,
        architecture=entry.architecture,
        tag=entry.tag or None,
        input_size=(3, entry.input_size, entry.input_size),
        pool_size=(entry.input_size // 32, entry.input_size // 32),
        crop_pct=entry.crop_pct,
        interpolation=entry.interpolation,
        mean=entry.mean,
        std=entry.std,
        first_conv=first,
        classifier=classifier,
        license=entry.license,
    )


def register() -> None:
    """Tell timm all names of the catalogue; its own two of the same name are taken over, so that
    they too are verified, pinned and cached like all others."""
    by_name: dict[str, dict[str, Entry]] = {}
    for entry in catalog().values():
        tags = by_name.setdefault(entry.arch_name, {})
        tags[entry.tag] = entry
        own = f"{entry.arch_name}."
        if entry.timm_weights and entry.timm_weights.startswith(own):
            tags[entry.timm_weights.removeprefix(own)] = entry
    for entries in by_name.values():
        architecture(next(iter(entries.values())))  # timm's own, before its name is taken over
    default_cfgs.update(
        generate_default_cfgs(
            {
                f"{name}.{tag}" if tag else name: cfg_of(entry)
                for name, entries in by_name.items()
                for tag, entry in entries.items()
            }
        )
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Overwriting hrnet_w")
        for name, entries in by_name.items():
            register_model(_function(name, entries))


def _function(name: str, entries: dict[str, Entry]) -> Create:
    def create(
        pretrained: bool = False,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        tag = pretrained_cfg if isinstance(pretrained_cfg, str) else ""
        entry = entries[tag]
        overlay = dict(pretrained_cfg_overlay or {})
        if pretrained_cfg is None or isinstance(pretrained_cfg, str):
            pretrained_cfg = cfg_of(entry)
            if pretrained and not any(overlay.get(source) for source in _SOURCES):
                from zoo.weights import weights_file

                overlay["file"] = str(weights_file(entry, cache=cache_dir))
        model = architecture(entry)(
            pretrained=pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            cache_dir=cache_dir,
            **{**entry.args, **kwargs},
        )
        model._model_args = dict(entry.args)  # type: ignore[assignment]  # an export says them
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{entries[next(iter(entries))].paddle_class}, distilled."
    create.__module__ = __name__
    return create
