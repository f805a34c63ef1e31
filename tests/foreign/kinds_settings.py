"""Settings as YAML files and as words of a command line, for every command, up to the checked
configuration; recipes and grids up to the settings of all their stages and trials."""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
from pathlib import Path
from typing import Any

import yaml
from mutations import MARK, NASTY, changed, encoded, respelled
from sandbox import Kind

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DISTILL = {
    "out": "run",
    "epochs": 3,
    "teacher": {"arch": "test_resnet", "checkpoint": None, "mean": [0.5, 0.5, 0.5]},
    "student": {"arch": "test_resnet", "args": {"drop_rate": 0.1}},
    "data": {"unlabeled": ["a", "b"], "labeled": "c", "val": "d", "holdout": 0.1},
    "augment": {"size": 32, "scale": [0.2, 1.0], "policy": "none", "flip": 0.5},
    "schedule": {"lr": 1e-4, "warmup_epochs": 1},
    "checkpoint": {"keep": 2, "every_steps": 5},
    "precision": "bf16",
}
SECOND = {**DISTILL, "run": "r0", "data": {"labeled": "c", "val": "d"}}
BACKBONE = {"out": "run", "epochs": 2, "backbone": {"name": "test_resnet"}}
COMMANDS: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "distill": ("ssld.distill.config", "DistillConfig", [DISTILL]),
    "supervised": (
        "ssld.distill.config",
        "SupervisedConfig",
        [{"out": "r", "epochs": 2, "data": {"labeled": "a", "val": "b"}}],
    ),
    "finetune": ("ssld.distill.config", "FinetuneConfig", [SECOND]),
    "fix": ("ssld.distill.config", "FixResConfig", [SECOND]),
    "plan": ("ssld.plan.config", "PlanConfig", [{**DISTILL, "seconds": 1.0}]),
    "evaluate": (
        "ssld.health.config",
        "EvaluateConfig",
        [{"model": "test_resnet", "data": ["a"], "args": {"a": 1}, "std": [0.2, 0.2, 0.2]}],
    ),
    "compare": ("ssld.compare.config", "CompareConfig", [{"runs": ["a", "b"], "out": "c.html"}]),
    "curate": (
        "ssld.curate.config",
        "CurateConfig",
        [{"out": "o", "gallery": ["a"], "protected": ["b"], "teacher": {"arch": "test_resnet"}}],
    ),
    "transfer": (
        "downstream.transfer.config",
        "TransferConfig",
        [{**BACKBONE, "data": {"labeled": "a", "val": "b"}}],
    ),
    "detection": (
        "downstream.detection.config",
        "DetectionConfig",
        [{**BACKBONE, "data": {"train": "a.json", "val": ["b"], "classes": ["x", "y"]}}],
    ),
    "segmentation": (
        "downstream.segmentation.config",
        "SegmentationConfig",
        [{**BACKBONE, "data": {"train": "a", "val": ["b"]}, "augment": {"crop": [32, 32]}}],
    ),
    "ab": (
        "downstream.ab.grid",
        "ABConfig",
        [{"task": "detection", "file": "f.yaml", "backbones": ["a", "b"], "seeds": 2}],
    ),
    "predict": (
        "downstream.deploy.config",
        "PredictConfig",
        [{"run": "r", "images": "a", "out": "o"}],
    ),
    "publish": ("ssld.zoo.config", "PublishConfig", [{"source": "a", "repo": "a/b"}]),
    "convert": (
        "ssld.zoo.config",
        "ConvertConfig",
        [{"file": "a", "out": "b", "paddle_class": "ResNet50_vd"}],
    ),
}
SNIPPETS = (
    f'!!python/object/apply:os.system ["{MARK}"]',
    f'!!python/object/apply:builtins.exec ["{MARK} = 1"]',
    "!!python/name:os.system",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!timestamp 2020-13-45",
    "!!int x",
    "!!float x",
    "!!bool maybe",
    "!foo bar",
    "2020-01-01",
    "2020-99-99",
    "0x1G",
    "0b2",
    "0o9",
    "1:61:00",
    "1_000_0",
    ".inf",
    ".nan",
    "1e400",
    "9" * 5000,
    "-" + "9" * 4301,
    "0x" + "f" * 6000,
    "*nowhere",
    "&a [*a]",
    "&a {b: *a}",
    "{a: 1, a: 2}",
    "{[1, 2]: 3}",
    "{{}: 3}",
    "? [a]",
    "<<: 3",
    "{<<: [1]}",
    "|\n a\n  b",
    '"\\x00"',
    '"\\ud800"',
    "\x07",
    "\udcff",
    "~",
    "off",
    "[" * 500,
    "[" * 500 + "]" * 500,
    "{a: " * 500 + "}" * 500,
    "%YAML 9.9",
    "---\na: 1\n---\nb: 2",
)
LAUGHS = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
)


@functools.cache
def recipes() -> dict[str, list[dict[str, Any]]]:
    """The files of configs/ by what reads them."""
    found: dict[str, list[dict[str, Any]]] = {"recipe": [], "ablate": [], "stage": []}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind = "ablate" if "grid" in tree else "recipe"
        staged = any(name in tree for name in ("distill", "supervised"))
        found[kind if staged else "stage"].append(tree)
    return found


def yaml_of(rng: random.Random, tree: Any) -> bytes:
    text = yaml.dump(tree, sort_keys=False, default_flow_style=rng.choice((False, False, None)))
    what = 1.5 * rng.random()
    if what < 0.35:
        lines = text.splitlines()
        place = rng.randrange(len(lines)) if lines else 0
        head = lines[place].partition(":")[0] if lines else "out"
        lines[place : place + 1] = [f"{head}: {rng.choice(SNIPPETS)}"]
        text = "\n".join(lines) + "\n"
    elif what < 0.45:
        text = respelled(rng, text)
    elif what < 0.47:
        text = f"{LAUGHS}\n{text.partition(chr(10))[2]}"
    elif what < 0.48:
        text = rng.choice(("", "---", "- a", "x", "null", "\0", "\ufeff", "#", "\t", "a: b: c"))
    if rng.random() < 0.05:
        return text.encode("utf-8", "surrogatepass")[: rng.randrange(len(text) + 1)] + b"\xff"
    return encoded(rng, text)


def words_of(rng: random.Random, tree: dict[str, Any]) -> list[str]:
    """A few settings as words, each with a nasty value."""
    found = []
    for _ in range(rng.choice((1, 1, 2))):
        name, part = "", tree
        while isinstance(part, dict) and part:
            key = rng.choice(list(part))
            name, part = f"{name}.{key}" if name else str(key), part[key]
            if rng.random() < 0.2:
                break
        value: Any = rng.choice((*NASTY, *SNIPPETS))
        text = value if isinstance(value, str) else json.dumps(value)
        ways = [[f"--{name}={text}"], [f"--{name}", text], [f"--{name}"], [f"--{name}.x={text}"]]
        found += rng.choice(ways)
    return found


def write_command(rng: random.Random, folder: Path) -> None:
    command = rng.choice(list(COMMANDS))
    bases = list(COMMANDS[command][2])
    tree = rng.choice(bases)
    words: list[str] = []
    if rng.random() < 0.3:
        words = words_of(rng, tree)
    elif rng.random() < 0.9:
        tree = changed(rng, tree, rng.choice((1, 1, 3)))
    data = yaml_of(rng, tree) if not words else yaml.dump(tree).encode()
    (folder / "c.yaml").write_bytes(data)
    said = json.dumps([command, words])
    (folder / "words.json").write_text(said)


def use_command(folder: Path, out: Path) -> None:
    from ssld.cli.parse import parse

    command, words = json.loads((folder / "words.json").read_text())
    module, name, _ = COMMANDS[command]
    os.chdir(out)
    config_class = getattr(importlib.import_module(module), name)
    config = parse(f"ssld {command}", config_class, ["--config", str(folder / "c.yaml"), *words])
    if hasattr(config, "allow_changes"):
        from ssld.common.settings import plain
        from ssld.engine.run_folder import check_out

        check_out(config)
        plain(config)


def write_recipe(rng: random.Random, folder: Path) -> None:
    kind = rng.choice(("recipe", "recipe", "ablate"))
    tree = rng.choice(recipes()[kind])
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(b"only its name is looked at")
    tree = changed(rng, tree, rng.choice((1, 1, 3))) if rng.random() < 0.7 else tree
    (folder / f"{kind}.yaml").write_bytes(yaml_of(rng, tree))


def use_recipe(folder: Path, out: Path) -> None:
    os.chdir(out)
    file = next(folder.glob("*.yaml"))
    place = str(folder / "images")
    overrides = [f"data.labeled={place}", f"data.val={place}"]
    from ssld.common.settings_file import read_settings

    tree = read_settings(file)
    if file.name == "ablate.yaml":
        from ssld.ablate.command import check_recipes
        from ssld.ablate.grid import build

        check_recipes(build(str(file), tree, None, overrides))
        return
    from ssld.recipe.recipe import open_recipe

    open_recipe(str(file), tree, None, overrides)


MODULES = ("jsonargparse", *(module for module, _, _ in COMMANDS.values()))
RECIPES = ("jsonargparse", "ssld.ablate.command", "ssld.recipe", "ssld.distill", "ssld.fix")
KINDS = {
    "settings.commands": Kind(write_command, use_command, MODULES),
    "settings.recipes": Kind(write_recipe, use_recipe, RECIPES),
}
