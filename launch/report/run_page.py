"""Writes a run as one page: a single HTML file that needs no network and no server.

Everything on it is read from the store (journal, plan, manifests, what the stages observed), so
it can be written again at any time, for running and failed runs too, and is the same text for
the same run. All text is escaped; the page's own policy forbids loading anything, and every script
but the one that searches texts, which is named by its hash and only there if there are texts.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.report import charts, diagram
from launch.ui import formatting
from launch.ui.console import order_metrics
from pipeline.atomic_io import read_json, write_atomic
from pipeline.context import read_series
from pipeline.execution.run import Run
from pipeline.redaction import redact
from pipeline.status import Event, RunStatus, StageStatus
from pipeline.storage.artifact import OBSERVED, Artifact
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from jinja2 import Template

FIGURES = 8  # headline figures at most
BEGINNING = 160  # characters of a text that stand for it


def write(run: Run, store: Store) -> Path:
    """Write the run's `report.html`; returns its path.

    Raises:
        Failure: the disk refuses.
    """
    path = run.folder / "report.html"
    write_atomic(path, render(run, store), durable=False)
    return path


def render(run: Run, store: Store) -> str:
    """The page as text."""
    from markupsafe import Markup

    status, events = run.status(), run.events()
    described: dict[str, Any] = read_json(run.folder / "plan.json", {})
    plan = {stage["name"]: stage for stage in described.get("stages", [])}
    stages = [
        _stage(run, store, stage, plan.get(stage.name, {}), events) for stage in status.stages
    ]
    spans = {stage.name: spans_of(events, stage.name) for stage in status.stages}
    needs = {name: stage.get("needs", []) for name, stage in plan.items()}
    script = _search() if any(p["type"] == "browser" for s in stages for p in s["panels"]) else ""
    text = template("page.html.j2").render(
        run=status,
        origin=status.origin,
        stages=stages,
        facts=list(_facts(status, events)),
        figures=_figures(status, needs),
        graph=Markup(diagram.graph([_box(stage) for stage in status.stages], needs)),  # noqa: S704
        timeline=Markup(diagram.timeline(spans)),  # noqa: S704
        promotions=[e for e in events if e["event"] in ("promoted", "gate.refused")],
        problems=[e for e in events if e["event"] in ("stage.failed", "stage.retry")],
        environment=_environment(stages),
        style=Markup(charts.STYLE),  # noqa: S704
        script=Markup(script),  # noqa: S704
        policy=Markup(_permission(script)),  # noqa: S704
    )
    return redact(text, run.secrets())


def parameters(run: Run, stage: str, identity: Mapping[str, Any]) -> dict[str, str]:
    """A stage's parameters, flat: as the pipeline file says, with the defaults that identify.

    Args:
        identity: the `params` of the stage's payload; empty if they are not known.
    """
    written = dict((run.resolved().get("stages") or {}).get(stage) or {})
    written.pop("uses", None)
    return dict(flat({**written, **identity})) | dict(flat(written))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """`train.lr` -> `0.0003`: nested mappings as dotted keys, anything else as text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def spans_of(events: Iterable[Event], stage: str) -> list[diagram.Span]:
    """When a stage worked, in seconds since 1970; what has no end yet ends with the journal."""
    spans: list[diagram.Span] = []
    began, now = None, 0.0
    for event in events:
        now = formatting.timestamp(event["time"])
        if event.get("stage") != stage:
            continue
        match event["event"]:
            case "stage.cached":
                spans.append((now, now, "cached"))
            case "stage.started":
                began = now
            case "stage.finished" | "stage.failed" | "stage.retry" | "stage.interrupted":
                state = event["event"].removeprefix("stage.").replace("retry", "failed")
                spans.append((now if began is None else began, now, state))
                began = None
    return spans if began is None else [*spans, (began, now, "running")]


@cache
def _search() -> str:
    return Path(__file__).with_name("search.js").read_text()


def _permission(script: str) -> str:
    """What the page's policy says of its one script."""
    if not script:
        return ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'"


@cache
def template(name: str) -> Template:
    """One of the pages of this folder; all text in it is escaped, and nothing hides in it."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return charts.visible(value) if plain else value

    environment = Environment(
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=_number, duration=formatting.duration, groups=_groups, beginning=_beginning
    )
    return environment.from_string(Path(__file__).with_name(name).read_text())


def _number(value: Any) -> str:
    """A table's cell: numbers as people read them, text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return formatting.number(value)


def _groups(panels: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Neighbours that belong together, under their group's name; empty for those of none."""
    named = itertools.groupby(panels, key=lambda panel: str(panel.get("group", "")))
    return [(name, list(members)) for name, members in named]


def _beginning(text: str) -> str:
    return " ".join(text[: 2 * BEGINNING].split())[:BEGINNING]


def _facts(status: RunStatus, events: list[Event]) -> Iterator[tuple[str, str]]:
    """The lines under the title."""
    if events:
        first, last = events[0]["time"], events[-1]["time"]
        yield "started", f"{formatting.to_minute(first)} UTC"
        yield "took", formatting.duration(formatting.timestamp(last) - formatting.timestamp(first))
    made = sum(stage.state == "finished" for stage in status.stages)
    cached = sum(stage.state == "cached" for stage in status.stages)
    yield "stages", f"{made} made, {cached} cached, {len(status.stages)} in all"
    if status.origin:
        yield "goes on from", status.origin
    for entry in status.registered:
        names = ", ".join(f"@{alias}" for alias in entry["aliases"])
        yield "promoted", f"{entry['model']} v{entry['version']} {names}"
    yield "store", status.store


def _figures(status: RunStatus, needs: Mapping[str, Iterable[str]]) -> list[tuple[str, float]]:
    """What the last stages found: those that no other stage needs."""
    needed = {need for found in needs.values() for need in found}
    last = [stage for stage in status.stages if stage.name not in needed]
    found = [
        (f"{s.name} · {key}", s.metrics[key]) for s in last for key in order_metrics(s.metrics)
    ]
    return found[:FIGURES]


def _box(stage: StageStatus) -> diagram.Box:
    took = formatting.duration(stage.seconds)
    detail = {"finished": took, "cached": "cached", "running": "running"}.get(
        stage.state, stage.state
    )
    detail = f"{stage.kind} · {detail}" if stage.kind and detail else stage.kind or detail
    said = [f"{stage.name} ({stage.uses}): {stage.state}", stage.reason]
    said += [f"{key} {formatting.number(value)}" for key, value in stage.metrics.items()]
    return diagram.Box(stage.name, detail, stage.state, "\n".join(filter(None, said)))


def _stage(
    run: Run, store: Store, stage: StageStatus, planned: Mapping[str, Any], events: list[Event]
) -> dict[str, Any]:
    """Everything that the page says of one stage."""
    found = store.latest_readable(stage.uses, stage.fingerprint) if stage.path else None
    observed = run.folder  # where there are no panels
    if found or stage.fingerprint:
        place = found.path if found else store.work(stage.uses, stage.fingerprint)
        observed = place / OBSERVED
    payload = (found.manifest.get("payload") if found else None) or planned.get("payload") or {}
    verdicts = [
        planned
        for event in events
        if event["event"] == "plan"
        for planned in event["stages"]
        if planned["name"] == stage.name
    ]
    return {
        "status": stage,
        "verdict": verdicts[-1].get("verdict", "") if verdicts else "",
        "why": verdicts[-1].get("reason", "") if verdicts else "",
        "parameters": parameters(run, stage.name, payload.get("params", {})),
        "panels": list(_panels(observed)),
        "artifact": _artifact(found, store) if found else None,
    }


def _panels(observed: Path) -> Iterator[dict[str, Any]]:
    """A stage's panels, drawn; those without content are left out."""
    from markupsafe import Markup

    series = read_series(observed / "metrics.jsonl")
    for panel in charts.panels(observed) or _default_panels(series):
        drawing = charts.draw(panel, series)
        if drawing or charts.grid(panel):
            yield {**panel, "drawing": Markup(drawing)}  # noqa: S704


def _default_panels(series: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A stage that has a series and no panels (a failed one): each key's curve."""
    keys = dict.fromkeys(key for row in series for key in row if key not in ("step", "time"))
    return [
        {"type": "curve", "title": key, "keys": [key], "log_y": False, "unit": ""}
        for key in list(keys)[:6]
    ]


def _artifact(artifact: Artifact, store: Store) -> dict[str, Any]:
    """An artifact's lineage."""
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
    """Versions of what the artifacts were made with; several where they differ."""
    found: dict[str, set[str]] = {}
    for stage in stages:
        if artifact := stage["artifact"]:
            versions = {"python": artifact["environment"]["python"]}
            for name, version in {**versions, **artifact["environment"]["packages"]}.items():
                found.setdefault(name, set()).add(version)
    return [(name, ", ".join(sorted(versions))) for name, versions in found.items()]
