"""`ssld bench`: how fast the parts of a distillation are, alone and together."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ssld.common.files import write_atomically
from ssld.distill.setup import open_data
from ssld.plan.batch_size import require_memory
from ssld.plan.config import BenchConfig
from ssld.plan.measure import open_bench, quietly

LABELS = {
    "loader": "loader alone",
    "teacher": "teacher alone, forward",
    "student": "student alone, supervised step",
    "both": "both, distillation step",
    "supervised_together": "supervised, all together",
    "together": "distillation, all together",
}
STORED = {
    "both": "step from stored labels",
    "together": "stored labels, all together",
}
"""Instead of those, where no teacher is asked."""


def bench(config: BenchConfig) -> None:
    """Print the table, and write it to `config.json`.

    Raises:
        InputError: bad settings, sources or weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(quietly(config, folder))
        bench, _ = open_bench(config, data)
        require_memory(bench)
        rates, run = bench.measure(config.seconds), bench.run
    say, device = data.accelerator.print, run.accelerator.device.type
    say(f"\n{run.world_size} process(es) on {device}, batch {config.batch_size}")
    for name, label in ({**LABELS, **STORED} if config.labels else LABELS).items():
        if name not in rates:
            continue
        say(f"  {label:<32}{rates[name]:>12,.1f} img/s")
    say(f"  {'distillation : supervised, step':<32}{rates['ratio']:>12.3f}")
    say(f"  {'distillation : supervised, all':<32}{rates['ratio_together']:>12.3f}")
    say(f"  {'peak memory':<32}{rates['peak_mib']:>12,.0f} MiB")
    write_json(config.json, rates, data.accelerator)


def write_json(path: str | None, result: dict[str, Any], accelerator: Accelerator) -> None:
    """Write a result for machines, where one is asked for."""
    if path and accelerator.is_main_process:
        write_atomically(Path(path), json.dumps(result, indent=2) + "\n")
