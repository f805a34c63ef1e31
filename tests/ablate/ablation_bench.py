"""A file, a folder and a stand-in for `ssld recipe` (`fake_recipe.py`) to try `ssld ablate`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from ssld.__main__ import main
from ssld.ablate import grid
from ssld.common.settings_file import read_settings

FAKE = [sys.executable, str(Path(__file__).with_name("fake_recipe.py"))]
STAGE = {"steps": 4, "student": {"arch": "test_resnet"}, "teacher.checkpoint": "t.safetensors"}
STAGE |= {"data": {"labeled": ["images"]}}
NAMED = ("images", "t.safetensors")
"""What STAGE names."""
GRID = {"optimizer.weight_decay": [1e-5, 1e-4], "seed": [0, 1]}
CLOCK = ("train_seconds", "images_per_second")
SECONDS = 20
"""After which a wait counts as hanging."""


class Bench:
    """A file, its folder, and what is asked of the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.file, self.out, self.asked = folder / "F.yaml", folder / "out", folder / "asked"
        self.asked.mkdir()
        self.write()

    def write(self, grid: Any = GRID, distill: Any = STAGE, **sections: Any) -> None:
        tree = {"out": str(self.out), "distill": distill, **sections, "grid": grid}
        self.file.write_text(yaml.safe_dump(tree, sort_keys=False))

    def ask(self, trial: str, what: str, text: str = "") -> None:
        (self.asked / f"{trial}.{what}").write_text(text)

    def starts(self) -> list[dict[str, Any]]:
        """What the stand-in was started with since this was last called."""
        path = self.asked / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def started(self) -> list[str]:
        return [start["trial"] for start in self.starts()]

    def run(self, *words: str) -> int:
        return main(["ablate", str(self.file), *words])

    def process(self, *words: str) -> subprocess.Popen:
        code = (
            "import sys; from ssld.ablate import command, pool; from ssld.cli.run import main; "
            f"pool.COMMAND = {FAKE}; command.check_recipes = command._finish = lambda _: None; "
            "raise SystemExit(main(['ablate', *sys.argv[1:]]))"
        )
        started = [sys.executable, "-c", code, str(self.file), *words]
        return subprocess.Popen(started, stderr=subprocess.PIPE, text=True)

    def wait(self, name: str) -> None:
        end = time.monotonic() + SECONDS
        while not (self.asked / name).exists():
            assert time.monotonic() < end, f"nobody wrote {name}"
            time.sleep(0.01)

    def table(self, folder: Path | None = None) -> list[dict[str, str]]:
        with ((folder or self.out) / "results.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def trials(bench: Bench, *overrides: str) -> list[grid.Trial]:
    return grid.build(str(bench.file), read_settings(bench.file), None, overrides).trials


def without_clock(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def lines_of(bench: Bench) -> list[str]:
    return (bench.out / "table.md").read_text().splitlines()
