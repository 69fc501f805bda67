from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sample_run

from launch.report import run_page
from launch.ui import formatting
from pipeline import panels
from pipeline.execution.run import Run

SMALL = ("clean", "tokenizer", "tokens", "gpt")


class Page(HTMLParser):
    """The tags that are open at the end, all tags, and what would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "rect", "circle", "line", "polyline", "path", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def page_of(run: Any) -> str:
    return run_page.write_run_page(run, run.store).read_text()


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path)
    text = page_of(run)
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert "default-src 'none'" in text
    for name in sample_run.STAGES:
        assert f'id="{name}"' in text and f'href="#{name}"' in text
    artifact = run.store.find("pretrain", sample_run.print_of("gpt"))
    assert artifact.digest[:32] in text
    for words in ("What the rules took away", "train.lr", "python:docs", "18.4", "near duplicates"):
        assert words in text
    assert text.count("<polyline") >= 10


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=SMALL)
    assert page_of(run) == page_of(run)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=(*SMALL, "dialogue", "sft"), failed="sft")
    context = sample_run.begin(run, "sft")
    context.panel(panels.samples(sample_run.HOSTILE, [{sample_run.HOSTILE: sample_run.HOSTILE}]))
    context.panel(panels.table("t", [sample_run.HOSTILE], [[sample_run.HOSTILE], [1.5]]))
    context.panel(panels.bars("b", {sample_run.HOSTILE: 2.0}))
    text = page_of(run)
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags and "img" not in page.tags
    assert "&lt;script&gt;" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


def test_failed_run_shows_error_and_curve(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=SMALL, failed="gpt")
    text = page_of(run)
    assert "Errors" in text
    assert "3 losses in a row were not finite" in text and "lower train.lr" in text
    assert "<h4>grad_norm</h4>" in text
    assert 'class="node failed"' in text


def test_running_run_shows_progress(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=SMALL[:2], finish=False)
    run.append("stage.retry", stage="tokenizer", attempt=1, error="rank 1 died", delay=1)
    text = page_of(run)
    assert "(retried)" in text and "rank 1 died" in text


def test_gate_tables(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=SMALL, finish=False)
    gate = {"gate": "gpt.loss<4", "metric": "gpt.loss", "value": 3.2, "threshold": 4.0,
            "champion": None, "passed": True, "note": ""}  # fmt: skip
    refused = {**gate, "gate": "gpt.loss<3", "threshold": None, "passed": False, "note": "why not"}
    run.append("promoted", model="talker", version=3, alias="champion", stage="gpt", gates=[gate])
    run.append("gate.refused", model="talker", stage="gpt", gates=[refused])
    run.append("gate.refused", error="1 of 2 gates refused")
    run.append("run.finished", state="finished")
    text = page_of(run)
    assert "gpt is talker v3" in text and "talker v3 @champion" in text
    assert "1 of 2 gates refused" in text
    assert "talker was refused" in text and "the model was refused" in text
    assert "gpt.loss&lt;3" in text and "why not" in text


def test_pending_run_has_a_page(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=("clean",), finish=False)
    run.journal.path.unlink()
    (run.folder / "plan.json").unlink()
    text = page_of(run)
    assert "pending" in text and Page(text).open == []


def test_cached_stage_and_run_with_origin(tmp_path: Path) -> None:
    first = sample_run.make(tmp_path, names=SMALL)
    second = sample_run.make(tmp_path, run_id="20261121-0204-deft-crane", names=(), finish=False)
    second.append("run.created", pipeline="quickstart", store=str(tmp_path), origin=first.id)
    cached = {"name": "gpt", "uses": "pretrain", "kind": "Model", "verdict": "cached"}
    late = {"name": "late", "uses": "late", "verdict": "skip", "reason": "not asked for"}
    planned = [{**cached, "fingerprint": sample_run.print_of("gpt")}, late]
    second.append("plan", stages=planned)
    second.append("stage.cached", stage="gpt", fingerprint=sample_run.print_of("gpt"))
    text = page_of(second)
    assert "continues" in text and first.id in text
    assert "Model · cached" in text
    assert "0 executed, 1 cached, 2 in total" in text


def test_secrets_are_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sample_run.make(tmp_path, names=SMALL[:2], failed="tokenizer")
    resolved = (run.folder / "run.yaml").read_text() + "    token: ${env:RIVER_TOKEN}\n"
    (run.folder / "run.yaml").write_text(resolved)
    monkeypatch.setenv("RIVER_TOKEN", "hunter2-hunter2")
    context = sample_run.begin(run, "tokenizer")
    context.panel(panels.bars("leak hunter2-hunter2", {"a": 1}))
    context.panel(panels.bars("empty", {}))
    text = page_of(Run(run.store, run.id))
    assert "hunter2" not in text and "${env:RIVER_TOKEN}" in text
    assert "empty" not in text


def test_parameters_are_flat_with_defaults_and_execution(tmp_path: Path) -> None:
    run = sample_run.make(tmp_path, names=SMALL)
    found = run_page.stage_parameters(run, "gpt", {"train": {"grad_clip": 1.0}, "seed": None})
    assert found["train.lr"] == "0.001"
    assert found["train.grad_clip"] == "1.0"
    assert found["workers.num"] == "2"
    assert found["seed"] == "null"
    assert found["tokens"] == "${tokens}"
    assert run_page.stage_parameters(run, "unknown", {}) == {}


def test_spans_of_attempts() -> None:
    def event(second: int, what: str, stage: str | None = "a") -> dict[str, Any]:
        return {"time": f"2026-11-21T00:00:{second:02d}.000Z", "event": what, "stage": stage}

    start = formatting.timestamp("2026-11-21T00:00:00Z")
    events = [
        event(1, "stage.started"),
        event(2, "stage.waiting"),
        event(3, "stage.retry"),
        event(4, "stage.started", "b"),
        event(5, "stage.started"),
        event(9, "run.finished", None),
    ]
    spans = [(a - start, b - start, state) for a, b, state in run_page.attempt_spans(events, "a")]
    assert spans == [(1, 3, "failed"), (5, 9, "running")]
    alone = run_page.attempt_spans([event(3, "stage.failed")], "a")
    assert [(a - start, b - start, s) for a, b, s in alone] == [(3, 3, "failed")]
