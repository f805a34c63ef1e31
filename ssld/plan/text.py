"""What `ssld plan` found, as text."""

from __future__ import annotations

from typing import Any

from ssld.health.teacher_check import GIVEN


def describe(result: dict[str, Any]) -> str:
    """The plan as text."""
    schedule, rates, cost = result["schedule"], result["rates"], result["cost"]
    memory, disk, fits = result["memory"], result["disk"], result["memory"]["largest_batch"]
    if cost["wall"] == "compute":
        times = rates["loader"] / rates["both"]
        wall = f"compute is the wall, decode could feed {times:.2g} times as much"
    else:
        times = rates["both"] / rates["loader"]
        wall = f"decode is the wall, compute could take {times:.2g} times as much"
        wall += f" (data.workers is {schedule['workers']}, {schedule['cores']} cores)"
    rows = [
        ("sources", [_source(source) for source in result["sources"]]),
        ("teacher", [_teacher(x) for x in result["teacher"]] or [_labels(result)]),
        (
            "schedule",
            [
                f"{schedule['steps']:,} steps of {schedule['batch_size']} on "
                f"{schedule['processes']} process(es), {schedule['epochs']:.4g} epochs of "
                f"{schedule['samples_per_epoch']:,} samples",
                f"learning rate {schedule['peak_lr']:.4g} at its peak ({schedule['lr']:g} per "
                f"256), after {schedule['warmup_steps']:,} steps of warm-up",
            ],
        ),
        (
            "speed",
            [
                f"decode {rates['loader']:,.0f} img/s, compute {rates['both']:,.0f} img/s: {wall}",
                f"all together {rates['together']:,.0f} img/s, {rates['ratio_together']:.2f} of "
                f"supervised training ({rates['supervised_together']:,.0f} img/s)",
            ],
        ),
        ("time", _hours(cost, result["labels"])),
        (
            "memory",
            [
                f"{memory['peak_mib']:,.0f} MiB at its peak, per process",
                f"largest batch_size that fits: about {fits:,} ({memory['how']})"
                if fits is not None
                else f"largest batch_size that fits: {memory['how']}",
            ],
        ),
        (
            "disk",
            [
                f"{disk['needed_mib']:,.1f} MiB for {disk['checkpoints']} checkpoints of "
                f"{disk['checkpoint_mib']:,.1f} MiB, {disk['free_mib']:,.0f} MiB free"
            ],
        ),
        ("problems", result["problems"] or ["none found"]),
        ("hints", result["hints"]),
    ]
    return in_columns(rows)


def in_columns(rows: list[tuple[str, list[str]]]) -> str:
    """Names on the left, and their lines beside them."""
    return "\n" + "\n".join(
        f"{name if i == 0 else '':<10}{line}"
        for name, lines in rows
        for i, line in enumerate(lines)
    )


def _source(source: dict[str, Any]) -> str:
    classes = f", {source['classes']} classes" if source["classes"] else ""
    bad = f", {source['unreadable']} of {source['looked_at']} looked at cannot be read"
    example = f": {source['examples'][0]}" if source["examples"] else ""
    return f"{source['role']} {source['path']}: {source['images']:,} images{classes}{bad}{example}"


def _teacher(teacher: dict[str, Any]) -> str:
    if teacher["fault"]:
        return f"{teacher['architecture']}: {teacher['fault']}"
    if not teacher["classes"]:
        return f"{teacher['architecture']}: features, as it has no classifier; not verified"
    if not teacher["labeled"]:
        why = teacher["not_on_labels"] or "no labeled image could be read"
        information = teacher["information"].get(GIVEN, 0.0)
        return (
            f"{teacher['architecture']}: no top-1, {why}; its predictions tell "
            f"{information:.2f} nats about an image ({teacher['images']} images)"
        )
    low, high = teacher["interval"]
    share, best = max((x, name) for name, x in teacher["top1"].items() if name != GIVEN)
    return (
        f"{teacher['architecture']}: top-1 {teacher['top1'][GIVEN]:.2%} [{low:.2%} to "
        f"{high:.2%}] on {teacher['labeled']} labeled images; best of what else was tried: {best}, "
        f"{share:.2%}"
    )


def _labels(result: dict[str, Any]) -> str:
    """Of a run that reads them."""
    labels, epochs = result["labels"], result["schedule"]["epochs"]
    seen = epochs / labels["views"]
    return (
        f"stored labels, {labels['top_k']} of {labels['classes']:,} classes of {labels['views']:,} "
        f"views, {labels['bytes'] / 1e9:,.3g} GB: "
        + (f"each view is seen {seen:.2g} times" if seen >= 1 else f"{seen:.0%} of them are seen")
    )


def _hours(cost: dict[str, Any], labels: dict[str, Any] | None) -> list[str]:
    def shown(name: str) -> str:
        money = f", cost {cost['cost'][name]:,.2f}" if cost["cost"] else ""
        return f"{duration(cost['hours'][name])}{money}"

    evaluations = f"(evaluations {duration(cost['of_which_evaluations'])})"
    if "online" not in cost["hours"]:
        return [f"from stored labels {shown('stored_labels_each_run')} {evaluations}"]
    online = f"online {shown('online')} {evaluations}"
    if labels is None:
        return [online]
    k = labels["top_k"]
    classes = "" if k in (10, labels["classes"]) else f" --top_k {k}"  # not said of the default
    return [
        online,
        f"with stored labels {shown('stored_labels_each_run')} a run, after "
        f"{shown('stored_labels_writing_once')} once for {cost['stored_labels_gb']:,.3g} GB of "
        f"labels (ssld labels build --views {labels['views']}{classes}; fewer views take less)",
    ]


def duration(hours: float) -> str:
    """As people say it."""
    if hours < 1:
        return f"{60 * hours:.2g} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
