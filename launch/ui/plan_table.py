"""The plan of a pipeline as tables: actions and reasons per stage, costs of each training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from launch.ui import console, formatting

if TYPE_CHECKING:
    from pipeline.execution.plan import Plan

COSTS = {
    "tokens": ("tokens", formatting.number),
    "flops": ("FLOPs", formatting.number),
    "memory_bytes": ("memory", formatting.size),
    "disk_bytes": ("disk", formatting.size),
    "seconds": ("time", formatting.duration),
}
WIDE_ONLY = ("flops", "disk_bytes")  # columns that a narrow terminal omits
KINDS = ("weights", "gradients", "optimizer", "activations", "buffers")
WAYS = {"reduced": "gradients", "gathered": "weights", "exchanged": "experts"}
TOWERS = {"image": "image tower", "text": "text tower"}
PARTS = TOWERS | {"similarity": "features and logits", "batch": "pixels"}
"""Parts of a CLIP that compute or hold memory."""
TRAINING = {"active_parameters", "steps", "hardware_flops", "devices", "communication_bytes"} | {
    f"{name}_bytes" for name in (*KINDS, *WAYS)
}
"""Keys of the estimate of a training, which gets a table of its own."""


def print_plan(plan: Plan) -> None:
    """Print the plan as a table, then training costs, warnings and totals."""
    costs = [key for key in COSTS if any(stage.estimate.get(key) for stage in plan.stages)]
    if console.get_console().width < console.NARROW:
        costs = [key for key in costs if key not in WIDE_ONLY]
    titles = [COSTS[key][0] for key in costs]
    table = console.make_table(
        "stage", "action", "reason", *titles, right=titles, flexible=["reason"]
    )
    for stage in plan.stages:
        cells = [COSTS[key][1](stage.estimate.get(key)) for key in costs]
        if stage.verdict in ("cached", "skip"):
            cells = [""] * len(costs)
        reason = "" if stage.reason == stage.verdict else stage.reason
        table.add_row(stage.name, console.format_state(stage.verdict), reason, *cells)
    console.echo(f"plan of {plan.pipeline}", "bold")
    console.print_table(table)
    for stage in plan.stages:
        if stage.verdict in ("run", "resume") and stage.estimate.keys() >= TRAINING:
            print_training(stage.name, stage.estimate)
    for stage in plan.stages:
        for warning in stage.warnings:
            console.echo(f"  warning: {stage.name}: {warning}", "yellow")
    console.echo(summarize_plan(plan), "dim")


def print_training(name: str, estimate: Mapping[str, float]) -> None:
    """Print the estimated costs of a training and their breakdown."""
    table = console.make_table(name, "", "breakdown", right=[""], flexible=["breakdown"])
    console.print_table(console.add_rows(table, training_rows(estimate)))


def training_rows(found: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Yield one row per quantity: name, value, breakdown."""
    number, size = formatting.number, formatting.size
    pairs = "pairs" in found
    active = f"{number(found['active_parameters'])} active"
    shares = _parts(found, TOWERS, "parameters", number) if pairs else active
    yield "parameters", number(found["parameters"]), shares
    samples = "pairs" if pairs else "tokens"
    each = number(found[samples] / found["steps"])
    yield samples, number(found[samples]), f"{number(found['steps'])} steps of {each}"
    again = found["hardware_flops"] > found["flops"]
    computed = f"{number(found['hardware_flops'])} with recomputation" if again else ""
    yield "FLOPs", number(found["flops"]), computed
    if pairs:
        yield "", "", _parts(found, TOWERS | {"similarity": "similarity"}, "flops", number)
    limit = f"peak, of {size(found['device_bytes'])}" if "device_bytes" in found else "peak"
    yield "memory per device", size(found["memory_bytes"]), limit
    yield "", "", _parts(found, {kind: kind for kind in KINDS}, "bytes", size)
    if pairs:
        yield "", "", f"activations: {_parts(found, PARTS, 'bytes', size)}"
    if "host_bytes" in found:
        yield (
            "host memory per node",
            size(found["host_bytes"]),
            "peak, in addition to device memory",
        )
    ways = WAYS | ({"exchanged": "features"} if pairs else {})
    sent = {word: found[f"{way}_bytes"] for way, word in ways.items()}
    breakdown = ", ".join(f"{word} {size(much)}" for word, much in sent.items() if much)
    yield "sent per device and step", size(found["communication_bytes"]), breakdown
    if "mfu" in found:
        step = formatting.duration(found["step_seconds"])
        yield "MFU", f"{100 * found['mfu']:.0f} %", f"{step} per step"
    hours = number(found["seconds"] * found["devices"] / 3600)
    together = f"{hours} device hours on {number(found['devices'])}"
    yield "time", formatting.duration(found["seconds"]), together


def _parts(
    found: Mapping[str, float],
    words: Mapping[str, str],
    unit: str,
    show: Callable[[float], str],
) -> str:
    """Return a breakdown: `image tower 304 M, text tower 124 M`."""
    return ", ".join(f"{word} {show(found[f'{key}_{unit}'])}" for key, word in words.items())


def summarize_plan(plan: Plan) -> str:
    """Return the number of stages per action, with the estimated time where it is known:
    `3 cached, 5 to run, at least 2h 10m of work`."""
    actions = [stage.verdict for stage in plan.stages]
    labels = {"cached": "cached", "resume": "to resume", "run": "to run", "skip": "skipped"}
    parts = [f"{actions.count(key)} {label}" for key, label in labels.items() if key in actions]
    work = [stage for stage in plan.stages if stage.verdict in ("run", "resume")]
    seconds = [stage.estimate["seconds"] for stage in work if stage.estimate.get("seconds")]
    time = f", at least {formatting.duration(sum(seconds))} of work" if seconds else ""
    return ", ".join(parts) + time
