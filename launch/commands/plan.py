"""`plan`: what would run and why, before anything does; and the table that `run` begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, mlflow_uri, open_store, store_option

if TYPE_CHECKING:
    from pipeline.plan import Plan, PlannedStage
    from pipeline.spec.pipeline_spec import ModelRef, Spec
    from pipeline.storage.artifact import Artifact
    from pipeline.storage.store import Store

COSTS = {
    "tokens": ("tokens", formatting.number),
    "flops": ("FLOPs", formatting.number),
    "memory_bytes": ("memory", formatting.size),
    "disk_bytes": ("disk", formatting.size),
    "seconds": ("time", formatting.duration),
}
MINOR = ("flops", "disk_bytes")  # what a narrow terminal does without
KINDS = ("weights", "gradients", "optimizer", "activations", "buffers")
WAYS = {"reduced": "gradients", "gathered": "weights", "exchanged": "experts"}
TOWERS = {"image": "image tower", "text": "text tower"}
PARTS = TOWERS | {"similarity": "features and logits", "batch": "pixels"}
"""Of a CLIP, what computes and what is held."""
TRAINING = {"active_parameters", "steps", "hardware_flops", "devices", "communication_bytes"} | {
    f"{name}_bytes" for name in (*KINDS, *WAYS)
}
"""What a stage estimates that trains a model: shown in a table of its own."""
KEYS = ("name", "uses", "verdict", "reason", "kind", "fingerprint", "needs", "estimate", "warnings")


def scope_options(command: Any) -> Any:
    """Which stages are meant: `--from`, `--only`, `--rerun`, `--strict-code`."""
    for option in (
        click.option("--strict-code", is_flag=True, help="Run stages whose code changed."),
        click.option("--rerun", multiple=True, metavar="STAGE", help="Make it again; repeatable."),
        click.option("--only", metavar="STAGE", help="This stage alone."),
        click.option("--from", "from_", metavar="STAGE", help="Make this and all after it again."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@store_option
@scope_options
@json_option
def plan(
    config: str,
    overrides: tuple[str, ...],
    store_path: str,
    from_: str | None,
    only: str | None,
    rerun: tuple[str, ...],
    strict_code: bool,
    as_json: bool,
) -> None:
    """Say for each stage whether it is cached, resumes or runs, why, and what it costs.

    Nothing is started and nothing is written.
    """
    from pipeline.spec.pipeline_spec import load

    store = open_store(store_path)
    made = make_plan(load(config, overrides), store, from_, only, rerun, strict_code)
    if as_json:
        console.print_json(described(made, store))
    else:
        show_plan(made)


def make_plan(
    spec: Spec,
    store: Store,
    from_: str | None = None,
    only: str | None = None,
    rerun: Sequence[str] = (),
    strict_code: bool = False,
) -> Plan:
    """Plan a pipeline against a store.

    Raises:
        UserError: a stage that is named does not exist, or a source cannot be read.
    """
    from pipeline.plan import make

    return make(
        spec,
        store,
        from_=from_,
        only=only,
        rerun=rerun,
        strict_code=strict_code,
        resolve_model=lambda ref: _registered(store, ref),
    )


def _registered(store: Store, ref: ModelRef) -> Artifact:
    """What `model:name@alias` stands for now."""
    from launch.tracking.model_registry import Registry

    return Registry(store, mlflow_uri()).resolve(ref.model, ref.alias)


def described(made: Plan, store: Store) -> dict[str, Any]:
    """What `plan --json` prints: a contract."""
    stages = [{key: stage.get(key) for key in KEYS} for stage in made.to_json()["stages"]]
    return {"pipeline": made.pipeline, "store": str(store.root), "stages": stages}


def show_plan(made: Plan) -> None:
    """The plan as a table, its warnings, and a sum."""
    costs = [key for key in COSTS if any(stage.estimate.get(key) for stage in made.stages)]
    if console.screen().width < console.NARROW:
        costs = [key for key in costs if key not in MINOR]
    titles = [COSTS[key][0] for key in costs]
    table = console.table("stage", "verdict", "reason", *titles, right=titles, flexible=["reason"])
    for stage in made.stages:
        cells = [COSTS[key][1](stage.estimate.get(key)) for key in costs]
        if stage.verdict in ("cached", "skip"):
            cells = [""] * len(costs)
        table.add_row(stage.name, console.state(stage.verdict), reason_of(stage), *cells)
    console.say(f"plan of {made.pipeline}", "bold")
    console.show(table)
    for stage in made.stages:
        if stage.verdict in ("run", "resume") and stage.estimate.keys() >= TRAINING:
            show_training(stage.name, stage.estimate)
    for stage in made.stages:
        for warning in stage.warnings:
            console.say(f"  warning: {stage.name}: {warning}", "yellow")
    console.say(summary(made), "dim")


def show_training(name: str, estimate: Mapping[str, float]) -> None:
    """What a training takes, in figures and where they come from."""
    table = console.table(name, "", "of which", right=[""], flexible=["of which"])
    console.show(console.rows(table, training_rows(estimate)))


def training_rows(found: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """A row a subject: what, how much, of which."""
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
    room = f"at once, of {size(found['device_bytes'])}" if "device_bytes" in found else "at once"
    yield "memory a device", size(found["memory_bytes"]), room
    yield "", "", _parts(found, {kind: kind for kind in KINDS}, "bytes", size)
    if pairs:
        yield "", "", f"in activations: {_parts(found, PARTS, 'bytes', size)}"
    if "host_bytes" in found:
        yield "memory of a node", size(found["host_bytes"]), "at once, beside its devices'"
    ways = WAYS | ({"exchanged": "features"} if pairs else {})
    sent = {word: found[f"{way}_bytes"] for way, word in ways.items()}
    told = ", ".join(f"{word} {size(much)}" for word, much in sent.items() if much)
    yield "sent a device and step", size(found["communication_bytes"]), told
    if "mfu" in found:
        step = formatting.duration(found["step_seconds"])
        yield "MFU", f"{100 * found['mfu']:.0f} %", f"{step} a step"
    hours = number(found["seconds"] * found["devices"] / 3600)
    together = f"{hours} device hours on {number(found['devices'])}"
    yield "time", formatting.duration(found["seconds"]), together


def _parts(
    found: Mapping[str, float],
    words: Mapping[str, str],
    unit: str,
    said: Callable[[float], str],
) -> str:
    """`image tower 304 M, text tower 124 M`."""
    return ", ".join(f"{word} {said(found[f'{key}_{unit}'])}" for key, word in words.items())


def reason_of(stage: PlannedStage) -> str:
    """Why, without the verdict that stands beside it."""
    return "" if stage.reason == stage.verdict else stage.reason


def summary(made: Plan) -> str:
    """`3 cached, 5 to run`, with the time if the stages could tell."""
    verdicts = [stage.verdict for stage in made.stages]
    words = {"cached": "cached", "resume": "to resume", "run": "to run", "skip": "left out"}
    parts = [f"{verdicts.count(key)} {word}" for key, word in words.items() if key in verdicts]
    work = [stage for stage in made.stages if stage.verdict in ("run", "resume")]
    known = [stage.estimate["seconds"] for stage in work if stage.estimate.get("seconds")]
    time = f", at least {formatting.duration(sum(known))} of work" if known else ""
    return ", ".join(parts) + time
