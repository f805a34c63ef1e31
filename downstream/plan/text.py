"""What `ssld plan detection` and its like found, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssld.plan.text import duration, in_columns


def describe(result: dict[str, Any]) -> str:
    """The plan as text."""
    return in_columns(
        [
            ("network", [_network(result["schedule"])]),
            ("schedule", [_schedule(result["schedule"])]),
            ("speed", list(_speed(result))),
            ("time", list(_time(result))),
            ("memory", list(_memory(result))),
            ("disk", [_disk(result["disk"])]),
            ("images", list(_unreadable(result["unreadable"]))),
            ("problems", result["problems"] or ["none found"]),
        ]
    )


def _network(schedule: dict[str, Any]) -> str:
    height, width = schedule["size"]
    return f"{schedule['parameters'] / 1e6:,.2f} M parameters, images of {width} x {height} px"


def _schedule(schedule: dict[str, Any]) -> str:
    parts = f", each in {schedule['accumulate']} parts" if schedule["accumulate"] > 1 else ""
    return (
        f"{schedule['steps']:,} steps of {schedule['batch_size']}{parts} on "
        f"{schedule['processes']} process(es), {schedule['epochs']:.4g} epochs of "
        f"{schedule['images']:,} images; {schedule['evaluations']:,} evaluations of "
        f"{schedule['held_out_images']:,} held-out ones"
    )


def _speed(result: dict[str, Any]) -> Iterator[str]:
    rates, schedule = result["rates"], result["schedule"]
    if not rates:
        yield "not measured, as no step fits"
        return
    yield (
        f"loader {rates['loader']:,.1f} img/s, training {rates['together']:,.1f} img/s, "
        f"evaluation {rates['evaluation']:,.1f} img/s"
    )
    if rates["loader"] < 1.25 * rates["together"]:
        yield (
            f"the loader is the wall (data.workers is {schedule['workers']}, "
            f"{schedule['cores']} cores)"
        )


def _time(result: dict[str, Any]) -> Iterator[str]:
    if "hours" not in result:
        yield "not known"
        return
    hours = result["hours"]
    yield f"{duration(hours['all'])} (evaluations {duration(hours['evaluations'])})"


def _memory(result: dict[str, Any]) -> Iterator[str]:
    memory, batch = result["memory"], result["schedule"]["batch_size"]
    if "peak_mib" in memory:
        derived = memory["measured_batch"] != batch
        yield (
            f"{'about ' if derived else ''}{memory['peak_mib']:,.0f} MiB at its peak, per process"
            + (f" (derived from steps of {memory['measured_batch']})" if derived else "")
        )
    fits = memory["largest_batch"]
    most = f"about {fits:,} ({memory['how']})" if fits else memory["how"]
    yield f"largest batch_size that fits: {most}"


def _disk(disk: dict[str, Any]) -> str:
    return (
        f"{disk['needed_mib']:,.1f} MiB for {disk['checkpoints']} checkpoints of "
        f"{disk['checkpoint_mib']:,.1f} MiB, {disk['free_mib']:,.0f} MiB free"
    )


def _unreadable(found: dict[str, Any]) -> Iterator[str]:
    if found["count"]:
        yield (
            f"{found['count']} of {found['looked_at']} looked at cannot be read: "
            f"{found['examples'][0]}"
        )
