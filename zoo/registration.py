"""Every name of the catalogue in timm: `timm.create_model("resnet50d_ssld")`.

Imported right after timm (`zoo/with_timm.py`), perhaps by a module of this package that is not
complete yet: what makes a network is imported when one is made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, generate_default_cfgs, register_model
from torch import nn

from zoo.catalog import Entry, catalog
from zoo.errors import InputError

_SOURCES = ("file", "url", "state_dict", "hf_hub_id")

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

UNTRAINED = ("spinenet49s", "spinenet49", "spinenet96", "spinenet143", "spinenet190")
"""Architectures of `zoo/architectures` that nobody has published weights of."""

# timm looks for the weights of a name in the `default_cfgs` of the module of its function.
default_cfgs: dict[str, Any] = {}
_UNTRAINED_CFG = PretrainedCfg(
    input_size=(3, 224, 224),
    pool_size=(28, 28),
    crop_pct=0.875,
    interpolation="bicubic",
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    first_conv="stem.0.conv",
    classifier="head.fc",
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
    default_cfgs.update(
        generate_default_cfgs(
            {
                f"{name}.{tag}" if tag else name: _cfg_of(entry)
                for name, entries in by_name.items()
                for tag, entry in entries.items()
            }
        )
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Overwriting hrnet_w")
        for name, entries in by_name.items():
            register_model(_function(name, entries))


def register_untrained() -> None:
    """Tell timm the architectures without weights."""
    default_cfgs.update(generate_default_cfgs({name: _UNTRAINED_CFG for name in UNTRAINED}))
    for name in UNTRAINED:
        register_model(_untrained(name))


def _untrained(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from zoo.architectures import CREATE

        return CREATE[name](pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = "Random weights: none are published."
    create.__module__ = __name__
    return create


def _function(name: str, entries: dict[str, Entry]) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        from zoo.architectures import architecture
        from zoo.weights import weights_file

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
            pretrained_cfg = _cfg_of(entry)
            if pretrained and not any(overlay.get(source) for source in _SOURCES):
                overlay["file"] = str(weights_file(entry, cache=cache_dir))
        model = architecture(entry)(
            pretrained=pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            cache_dir=cache_dir,
            **{**entry.args, **kwargs},
        )
        vars(model)["_model_args"] = dict(entry.args)  # an export says them
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{entries[next(iter(entries))].paddle_class}, distilled."
    create.__module__ = __name__
    return create


def _cfg_of(entry: Entry) -> PretrainedCfg:
    """What timm wants to know of the weights: preprocessing, classifier, licence."""
    known = entry.terms in ("permissive", "conditions")
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
        license=entry.license if known else entry.teacher_license,
    )


register()
register_untrained()
