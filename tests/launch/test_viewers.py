"""Every viewer shows every store: values that are not finite, and text that could be markup."""

from __future__ import annotations

import io
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import sample_run
from click.testing import CliRunner
from command_calls import call_command
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from launch.cli import cli
from launch.ui.live_table import StatusLines, StatusTable
from launch.ui.plan_table import print_plan
from pipeline import panels
from pipeline.context import read_series
from pipeline.execution.plan import Plan, PlannedStage
from pipeline.execution.run import Run
from pipeline.plain_data import read_numbers
from pipeline.status import RunStatus, StageStatus

ODD: list[Any] = [
    *(math.nan, math.inf, -math.inf, None, 0.0, -0.0, 5e-324, -1e-310, 1.0),
    *(1.7e308, -1.7e308, 1e300, -1e17, 1 + 1e-15, 10**400, 2**63, 0.1),
]
OLD = ["nan", "inf", "-inf"]  # the names that files of older versions hold
HOSTILE = "[url] [/red] :smile: \x1b[31mred \x9b31m \u202egnp\rx\ny </td>&"
CONTROL = r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
STAGES = ("latest:gpt", "latest:sft")
VIEWERS = ("status", "list", "show", "show latest:gpt", "report", "diff latest:gpt latest:sft",
           "diff latest:gpt latest:gpt", "models", "models --history")  # fmt: skip
WITH_JSON = [words for words in VIEWERS if words != "report"]

values = st.one_of(st.sampled_from(ODD), st.floats(), st.integers(-(2**70), 2**70))


def make_run(root: Path, found: list[Any], text: str = "documents", *, old: bool = False) -> Run:
    """Make a run of two stages whose metrics, series, panels and progress hold these values.

    An `old` one has files as older versions wrote them.
    """
    run = sample_run.make(root, names=(), finish=False)
    planned = [sample_run._planned(name) for name in ("gpt", "sft")]
    planned[0] |= {"reason": text, "estimate": {"flops": found[0], "seconds": found[-1]}}
    (run.folder / "plan.json").write_text(json.dumps({"pipeline": "quickstart", "stages": planned}))
    run.append("plan", stages=planned)
    for name, order in (("gpt", found), ("sft", found[::-1])):
        context = sample_run.begin(run, name)
        for step, value in enumerate(order):
            cost = order[step - 1]
            context.metrics(step, {"loss": value, "tokens": cost, "step_seconds": value, text: 1})
        context.progress(*order[:2], text, loss=order[0], tokens_per_second=order[-1])
        named = {f"{text} {number}": value for number, value in enumerate(order)}
        context.panel(panels.waterfall("a", text, list(named.items())))
        context.panel(panels.bars("b", named, unit=text))
        context.panel(panels.curve("c", ["loss", text], log_y=True, unit=text))
        context.panel(panels.histogram("d", [*order, 1.0], [1] * len(order), thresholds=order))
        context.panel(panels.histogram("e", [1.0, 2.0], [3], thresholds=order))
        context.panel(panels.table(f"f {text}", [text, "x"], [[text, value] for value in order]))
        context.panel(panels.samples("g", [{"before": text}]))
        context.result(**named)
        (context.out / "data.bin").write_bytes(name.encode())
        if old:
            age(context.observed)
        sample_run.commit(run, name)
    run.append("run.finished", state="finished")
    write_promotion(run, found)
    if old:
        age(run.folder)
    return run


def write_promotion(run: Run, found: list[Any]) -> None:
    artifact = run.store.find("pretrain", sample_run.print_of("gpt"))
    assert artifact
    metrics = {f"gpt.{number}": value for number, value in enumerate(found)}
    facts = {"time": "2026-11-21T02:00:00Z", "user": "ada", "action": "promote", "model": "talker"}
    facts |= {key: getattr(artifact, key) for key in ("uses", "kind", "fingerprint", "digest")}
    gate = {"gate": "gpt.0<1", "value": found[0], "threshold": found[-1], "passed": False}
    record = {**facts, "alias": "champion", "from": None, "to": 1, "run": run.id, "stage": "gpt"}
    record |= {"path": "artifacts", "commit": None, "metrics": metrics, "gates": [gate]}
    log = run.store.root / "registry" / "talker" / "promotions.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps(record) + "\n")


def age(folder: Path) -> None:
    """Write the null of each metric as older versions did: as text, and as NaN in a list."""
    for path in [*folder.glob("*.json"), *folder.glob("*.jsonl")]:
        scope = r'"metrics": \{.*?\}' if path.name == "journal.jsonl" else r"(?s).*"
        text = re.sub(r',\s*"crc32": \d+', "", path.read_text())
        text = re.sub(scope, lambda found: name_nulls(found[0]), text)
        path.write_text(text)


def name_nulls(text: str) -> str:
    """Write null as text or NaN."""
    named = re.sub(r'(": )null\b', r'\1"nan"', text)
    return re.sub(r"(?<=[\[ ])null(?=[,\]])", "NaN", named)


def refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def look(run: Run) -> str:
    """Call every viewer of the run; return everything that they showed."""
    store, page = str(run.store.root), run.store.root / "compare.html"
    shown = [call_command(store, *words.split()).output for words in VIEWERS]
    for words in WITH_JSON:
        shown.append(call_command(store, *words.split(), "--json").stdout)
        json.loads(shown[-1], parse_constant=refuse)
    series = read_series(Path(run.status().stages[0].path) / "observed" / "metrics.jsonl")
    comparable = any(point["loss"] is not None for point in series)
    compared = call_command(store, "compare", *STAGES, code=0 if comparable else 2)
    shown += [compared.output, page.read_text() if comparable else ""]
    shown += StatusLines().lines(run.status(), 0.0)
    return "\n".join([*shown, (run.folder / "report.html").read_text()])


@settings(max_examples=3, deadline=None)
@given(found=st.lists(values, min_size=2, max_size=6))
@example(found=ODD)
@example(found=[1e18, 1e18])
@example(found=[math.nan, math.inf])
@example(found=[math.nan, 5e-324, -1.0])
def test_no_value_ends_a_viewer_and_none_becomes_text(found: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "store", found)
        for path in run.store.root.rglob("*.jsonl"):
            for line in path.read_text().splitlines() if path.parent.name != "talker" else ():
                json.loads(line, parse_constant=refuse)
        shown = look(run)
    assert not re.findall(r".*\b(?:nan|NaN|inf|Infinity|None)\b.*", shown)


@given(done=values, total=values, loss=values)
def test_the_live_display_shows_any_progress(done: Any, total: Any, loss: Any) -> None:
    numbers = {"done": done, "total": total, "loss": loss, "a_per_second": loss, "time": 1.0}
    stage = StageStatus("gpt", "pretrain", "running", progress=read_numbers(numbers))
    status = RunStatus("r", "p", "running", stages=[stage])
    table, lines = StatusTable(), StatusLines()
    for time in (1.0, 20.0):
        numbers["time"] = time
        Console(file=io.StringIO(), width=80).print(table.draw(status, 80))
        assert "nan" not in "".join(lines.lines(status, time))


def test_stores_of_older_versions_are_read(tmp_path: Path) -> None:
    found = [math.nan, 1.5, math.inf, 2.5]
    run = make_run(tmp_path / "store", found, old=True)
    assert '"nan"' in (run.folder / "journal.jsonl").read_text()
    assert "NaN" in next(run.store.root.rglob("panels.json")).read_text()
    shown = look(run)
    assert not re.findall(r".*\b(?:nan|NaN|inf)\b.*", shown)
    assert "documents 0 –" in shown


def test_text_of_a_store_is_shown_as_text(tmp_path: Path) -> None:
    shown = look(make_run(tmp_path / "store", [1.0, 2.0, 3.0], HOSTILE))
    assert not re.findall(CONTROL, shown)
    assert "[url] [/red] :smile: \\x1b[31mred \\x9b31m \\u202egnp\\rx\\ny" in shown
    page = shown.rpartition("<!doctype html>")[2]
    assert "y &lt;/td&gt;&amp;" in page and "y </td>" not in page


def test_plans_and_errors_show_text_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = PlannedStage(
        name="clean", uses="clean", kind="Documents", action="run", reason=HOSTILE, fingerprint="",
        payload={}, inputs={}, needs=[], estimate={"tokens": math.nan}, warnings=[HOSTILE],
        source_hash="", estimate_rows=[{"name": HOSTILE, "value": math.nan, "unit": "count",
                                        "parts": {HOSTILE: math.inf}, "note": HOSTILE}],
    )  # fmt: skip
    print_plan(Plan("p", [stage]))
    shown = capsys.readouterr().out
    assert "[url] [/red] :smile: \\x1b[31mred" in shown
    for words in ([], ["status"], ["show"], ["plan"], ["models"]):
        for more in ([], [f"--{HOSTILE}"], ["--store", HOSTILE]):
            shown += CliRunner().invoke(cli, [*words, HOSTILE, *more]).output
    assert not re.findall(CONTROL, shown)
