"""The report of a run: one HTML page that needs no network and no server.

Everything on it is read from the store (journal, plan, manifests, observations of the stages), so
it can be written again at any time, also for running and failed runs, and is the same text for the
same run. All text is escaped. The page's content security policy forbids external resources and all
scripts except the text search, which is allowed by its hash and present only if there are texts.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.failures import next_command, run_failures
from launch.report import charts, diagram, svg
from launch.stage_warnings import stage_warnings
from launch.ui import formatting
from launch.ui.console import order_metrics
from pipeline.atomic_io import read_json, write_atomic
from pipeline.context import read_series
from pipeline.execution.run import Run
from pipeline.plain_data import to_plain
from pipeline.status import Event, RunStatus, StageStatus
from pipeline.storage.artifact import OBSERVED, Artifact
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from jinja2 import Template

MAX_HEADLINES = 8
EXCERPT_LENGTH = 160


def write_run_page(run: Run, store: Store) -> Path:
    """Write the run's `report.html` and return its path.

    Raises:
        Failure: the file cannot be written.
    """
    path = run.folder / "report.html"
    write_atomic(path, render_run_page(run, store), durable=False)
    return path


def render_run_page(run: Run, store: Store) -> str:
    """Return the page."""
    from markupsafe import Markup

    status, events = run.status(), run.events()
    described: dict[str, Any] = read_json(run.folder / "plan.json", {})
    plan = {stage["name"]: stage for stage in described.get("stages", [])}
    stages = [
        _stage(run, store, stage, plan.get(stage.name, {}), events) for stage in status.stages
    ]
    spans = {stage.name: attempt_spans(events, stage.name) for stage in status.stages}
    needs = {name: stage.get("needs", []) for name, stage in plan.items()}
    script = (
        _search_script() if any(p["type"] == "browser" for s in stages for p in s["panels"]) else ""
    )
    return load_template("page.html.j2").render(
        run=status,
        origin=status.origin,
        stages=stages,
        facts=list(_facts(status, events)),
        headlines=_headlines(status, needs),
        graph=Markup(diagram.draw_graph([_stage_box(stage) for stage in status.stages], needs)),  # noqa: S704
        timeline=Markup(diagram.draw_timeline(spans)),  # noqa: S704
        promotions=[e for e in events if e["event"] in ("promoted", "gate.refused")],
        failures=run_failures(run, status),
        command=_next_command(run, status),
        retries=[e for e in events if e["event"] == "stage.retry"],
        environment=_environment(stages),
        style=Markup(svg.STYLE),  # noqa: S704
        script=Markup(script),  # noqa: S704
        policy=Markup(_script_policy(script)),  # noqa: S704
    )


def _next_command(run: Run, status: RunStatus) -> str:
    """Return the command that continues the run, with its store; empty if it is not needed."""
    command = next_command(run, status)
    return f"{command.words} --store {shlex.quote(str(run.store.root))}" if command else ""


def stage_parameters(run: Run, stage: str, identity: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a stage by dotted key, without secrets: those of the pipeline file,
    and the defaults that enter the fingerprint.

    Args:
        identity: `params` of the stage's payload; empty if unknown.
    """
    resolved = to_plain(run.resolved(), run.secrets())
    written = dict((resolved.get("stages") or {}).get(stage) or {})
    written.pop("uses", None)
    return dict(flatten({**written, **identity})) | dict(flatten(written))


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values as dotted key and text: `train.lr`, `0.0003`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flatten(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def attempt_spans(events: Iterable[Event], stage: str) -> list[diagram.Span]:
    """Return the attempts of a stage as spans; an attempt without an end ends with the journal."""
    spans: list[diagram.Span] = []
    start, now = None, 0.0
    for event in events:
        now = formatting.timestamp(event["time"])
        if event.get("stage") != stage:
            continue
        match event["event"]:
            case "stage.cached":
                spans.append((now, now, "cached"))
            case "stage.started":
                start = now
            case "stage.finished" | "stage.failed" | "stage.retry" | "stage.interrupted":
                state = event["event"].removeprefix("stage.").replace("retry", "failed")
                spans.append((now if start is None else start, now, state))
                start = None
    return spans if start is None else [*spans, (start, now, "running")]


@cache
def _search_script() -> str:
    return Path(__file__).with_name("search.js").read_text()


def _script_policy(script: str) -> str:
    """Return the part of the content security policy that allows the script."""
    if not script:
        return ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'"


@cache
def load_template(name: str) -> Template:
    """Load a page template; all its values are escaped, including control characters."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return svg.escape_text(value) if is_text else value

    environment = Environment(
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=_format_cell,
        duration=formatting.duration,
        groups=_groups,
        excerpt=lambda text: " ".join(str(text)[: 2 * EXCERPT_LENGTH].split())[:EXCERPT_LENGTH],
    )
    return environment.from_string(Path(__file__).with_name(name).read_text())


def _format_cell(value: Any) -> str:
    """Format a table cell; text is kept."""
    return str(value) if isinstance(value, str | bool) else formatting.number(value)


def _groups(panels: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return runs of adjacent panels by group name; empty for panels without a group."""
    named = itertools.groupby(panels, key=lambda panel: str(panel.get("group", "")))
    return [(name, list(members)) for name, members in named]


def _facts(status: RunStatus, events: list[Event]) -> Iterator[tuple[str, str]]:
    """Yield the facts below the title."""
    if events:
        first, last = events[0]["time"], events[-1]["time"]
        yield "started", f"{formatting.to_minute(first)} UTC"
        yield (
            "duration",
            formatting.duration(formatting.timestamp(last) - formatting.timestamp(first)),
        )
    made = sum(stage.state == "finished" for stage in status.stages)
    cached = sum(stage.state == "cached" for stage in status.stages)
    yield "stages", f"{made} executed, {cached} cached, {len(status.stages)} in total"
    if status.origin:
        yield "continues", status.origin
    for entry in status.registered:
        names = ", ".join(f"@{alias}" for alias in entry["aliases"])
        yield "promoted", f"{entry['model']} v{entry['version']} {names}"
    yield "store", status.store


def _headlines(
    status: RunStatus, needs: Mapping[str, Iterable[str]]
) -> list[tuple[str, float | None]]:
    """Return the metrics of the last stages, those that no other stage needs."""
    needed = {need for found in needs.values() for need in found}
    last = [stage for stage in status.stages if stage.name not in needed]
    found = [
        (f"{s.name} · {key}", s.metrics[key])
        for s in last
        for key in order_metrics(s.metrics, s.kind)
    ]
    return found[:MAX_HEADLINES]


def _stage_box(stage: StageStatus) -> diagram.StageBox:
    took = formatting.duration(stage.seconds)
    detail = {"finished": took, "cached": "cached", "running": "running"}.get(
        stage.state, stage.state
    )
    detail = f"{stage.kind} · {detail}" if stage.kind and detail else stage.kind or detail
    title = [f"{stage.name} ({stage.uses}): {stage.state}", stage.reason]
    title += [f"{key} {formatting.number(value)}" for key, value in stage.metrics.items()]
    return diagram.StageBox(stage.name, detail, stage.state, "\n".join(filter(None, title)))


def _stage(
    run: Run, store: Store, stage: StageStatus, planned: Mapping[str, Any], events: list[Event]
) -> dict[str, Any]:
    """Return the values of one stage for the template."""
    found = store.latest_readable(stage.uses, stage.fingerprint) if stage.path else None
    observed = run.folder  # has no panels
    if found or stage.fingerprint:
        folder = found.path if found else store.work(stage.uses, stage.fingerprint)
        observed = folder / OBSERVED
    payload = (found.manifest.get("payload") if found else None) or planned.get("payload") or {}
    decisions = [
        planned
        for event in events
        if event["event"] == "plan"
        for planned in event["stages"]
        if planned["name"] == stage.name
    ]
    return {
        "status": stage,
        "action": decisions[-1].get("verdict", "") if decisions else "",
        "why": decisions[-1].get("reason", "") if decisions else "",
        "parameters": stage_parameters(run, stage.name, payload.get("params", {})),
        "panels": list(_panels(observed, run.secrets())),
        "warnings": stage_warnings(store, stage),
        "artifact": _artifact(found, store) if found else None,
    }


def _panels(observed: Path, secret_names: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yield the panels of a stage with their drawings, without empty panels."""
    from markupsafe import Markup

    series = read_series(observed / "metrics.jsonl")
    for panel in charts.read_panels(observed, secret_names) or _default_panels(series):
        drawing = charts.draw(panel, series)
        if drawing or charts.table_of(panel):
            yield {**panel, "drawing": Markup(drawing)}  # noqa: S704


def _default_panels(series: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a curve per key, for a stage with a series but without panels (a failed one)."""
    keys = dict.fromkeys(key for row in series for key in row if key not in ("step", "time"))
    return [
        {"type": "curve", "title": key, "keys": [key], "log_y": False, "unit": ""}
        for key in list(keys)[:6]
    ]


def _artifact(artifact: Artifact, store: Store) -> dict[str, Any]:
    """Return the lineage of an artifact for the template."""
    manifest = artifact.manifest
    files = [file for file in manifest["files"] if not file.get("observed")]
    return {
        "name": f"{artifact.uses}/{artifact.fingerprint}",
        "digest": artifact.digest,
        "path": str(artifact.path.relative_to(store.root)),
        "size": formatting.size(sum(file["size"] for file in files)),
        "files": len(files),
        "inputs": [
            (edge, f"{used['uses']}/{used['fingerprint']}", used["digest"])
            for edge, found in sorted(manifest["inputs"].items())
            for used in found
        ],
        "externals": sorted((manifest.get("payload") or {}).get("externals", {}).items()),
        "code": manifest["code"],
        "run": manifest["run"],
        "created": manifest["created"],
        "environment": manifest["environment"],
    }


def _environment(stages: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the package versions of the artifacts; several where they differ."""
    found: dict[str, set[str]] = {}
    for stage in stages:
        if artifact := stage["artifact"]:
            versions = {"python": artifact["environment"]["python"]}
            for name, version in {**versions, **artifact["environment"]["packages"]}.items():
                found.setdefault(name, set()).add(version)
    return [(name, ", ".join(sorted(versions))) for name, versions in found.items()]
