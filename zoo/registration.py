"""Every name of the catalogue in timm: `timm.create_model("resnet50d_ssld")`."""

from __future__ import annotations

import warnings
from typing import Any

from timm.models import PretrainedCfg, generate_default_cfgs, register_model
from torch import nn

from zoo.architectures import Create, architecture, cfg_of
from zoo.catalog import Entry, catalog
from zoo.errors import InputError
from zoo.weights import weights_file

_SOURCES = ("file", "url", "state_dict", "hf_hub_id")

# timm looks for the weights of a name in the `default_cfgs` of the module of its function.
default_cfgs: dict[str, Any] = {}


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
        if isinstance(pretrained_cfg, PretrainedCfg) and pretrained_cfg.url:
            # what timm.get_pretrained_cfg says of our own: timm would fetch it unverified
            own = [k for k, e in entries.items() if e.url == pretrained_cfg.url]
            tag, pretrained_cfg = (own[0], own[0]) if own else (tag, pretrained_cfg)
        if tag not in entries:
            known = " or ".join(f"{name}.{x}" if x else name for x in entries)
            raise InputError(f"there are no weights {name}.{tag}; give {known}")
        entry = entries[tag]
        overlay = dict(pretrained_cfg_overlay or {})
        if pretrained_cfg is None or isinstance(pretrained_cfg, str):
            pretrained_cfg = cfg_of(entry)
            if pretrained and not any(overlay.get(source) for source in _SOURCES):
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
