"""Failures of stages and of promotions: every viewer shows error, remedy and command."""

from __future__ import annotations

import html

import pytest
import sample_run
import yaml
from command_calls import Call, parse_json

from launch import promotion
from launch.commands.list import EXPLAINED
from launch.failures import next_command, promote_command, run_failures
from launch.promotion import promote_run, resolve_promotion
from launch.report.run_page import render_run_page
from pipeline.errors import UserError
from pipeline.execution.run import Run
from pipeline.storage.store import Store

MISSPELT = "the gate 'evaluate.perplexty<20' needs the metric 'evaluate.perplexty'"
NEAREST = "did you mean 'evaluate.perplexity'?"


def add_promotion(run: Run, *require: str) -> None:
    """Add a `promote` section to the run's pipeline."""
    path = run.folder / "run.yaml"
    section = {"model": "demo", "stage": "${ppo}", "alias": "best", "require": list(require)}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "promote": section}))


@pytest.fixture
def misspelt(run: Run) -> Run:
    """A run whose stages are finished and whose gate names a metric that does not exist."""
    add_promotion(run, "evaluate.perplexty<20", "nothing.like_it>3")
    run.append("run.started", pid=1, host="calm")
    facts = {"class": "user", "error": MISSPELT, "remedy": NEAREST}
    run.append("run.finished", state="failed", **facts)
    return run


def test_every_viewer_shows_why_a_promotion_failed(misspelt: Run, call: Call) -> None:
    command = f"headwater promote {misspelt.id} --require 'evaluate.perplexity<20'"
    page = render_run_page(misspelt, misspelt.store)
    head = html.unescape(page[page.index("<h2>Errors") : page.index("<h2>Results")])
    for text in (call("status").stderr, call("list").stdout, head):
        assert MISSPELT in text and NEAREST in text
        assert f"next: {command} --store" in text.replace("<code>", "")
    listed = parse_json(call("list", "--json"))[0]["failures"]
    assert listed == [{"subject": "promotion", "error": MISSPELT, "remedy": NEAREST}]
    shown = parse_json(call("status", "--json"))
    assert (shown["failures"], shown["next"]) == (listed, command)


def test_a_refused_gate_is_shown_with_its_value(run: Run, call: Call) -> None:
    add_promotion(run, "evaluate.perplexity<10")
    table = "1 of 1 gates failed\n  FAIL  evaluate.perplexity<10: 18.4 against 10"
    run.append("gate.refused", error=table, remedy="the alias was not moved")
    run.append("run.finished", state="refused")
    printed = call("status").stderr
    assert f"refused: promotion: {table}" in printed and "the alias was not moved" in printed
    assert f"next: headwater promote {run.id} --require 'evaluate.perplexity<10'" in printed


def test_a_promotion_that_mlflow_prevented_is_repeated_by_resume(run: Run) -> None:
    add_promotion(run)
    run.append("run.finished", state="failed", error="MLflow: no", remedy="", **{"class": "error"})
    command = next_command(run, run.status())
    assert command is not None and command.words == f"headwater resume {run.id}"


def test_a_mistake_of_the_user_is_corrected_and_resumed(store: Store) -> None:
    run = sample_run.make(store.root, names=("clean", "tokenizer"), failed="tokenizer")
    run.append("run.started", pid=1, host="calm")
    facts = {"class": "user", "error": "no text", "remedy": "give files"}
    run.append("stage.failed", stage="tokenizer", **facts)
    run.append("run.finished", state="failed")
    status = run.status()
    assert [str(failure) for failure in run_failures(run, status)] == ["tokenizer: no text"]
    command = next_command(run, status)
    assert command is not None and command.words == f"headwater resume {run.id}"


def test_an_engine_failure_has_no_stage(store: Store) -> None:
    run = sample_run.make(store.root, names=("clean", "tokenizer"), finish=False)
    run.append("plan", stages=[{"name": "gpt", "uses": "pretrain"}])
    run.append("run.finished", state="failed", error="disk full", **{"class": "error"})
    assert [str(failure) for failure in run_failures(run, run.status())] == ["disk full"]


def test_a_finished_run_needs_no_command(run: Run, call: Call) -> None:
    assert run_failures(run, run.status()) == []
    assert next_command(run, run.status()) is None
    assert "next:" not in call("list").output


def test_an_unreadable_pipeline_file_suggests_no_gates(misspelt: Run) -> None:
    (misspelt.folder / "run.yaml").unlink()
    assert promote_command(misspelt, misspelt.status()) == f"headwater promote {misspelt.id}"


def test_list_explains_the_newest_failures(store: Store, call: Call) -> None:
    for day in range(1, 3 + EXPLAINED):
        sample_run.make(store.root, run_id=f"202611{day:02}-0203-calm-heron", failed="clean")
    text = call("list").stdout
    assert text.count("error: clean: 3 losses in a row") == EXPLAINED
    assert "2 more failed: headwater status RUN" in text


def test_parts_of_a_promotion_default_to_the_pipeline_file(misspelt: Run, call: Call) -> None:
    gates = ("evaluate.perplexty<20", "nothing.like_it>3")
    rule = resolve_promotion(misspelt, "", None, None, ())
    assert (rule.model, rule.stage, rule.alias, rule.require) == ("demo", "ppo", "best", gates)
    assert resolve_promotion(misspelt, "", None, None, ("ppo.kl<1",)).require == ("ppo.kl<1",)
    other = resolve_promotion(misspelt, "sft", None, None, ())
    assert (other.stage, other.alias, other.require) == ("sft", "champion", ())
    assert NEAREST in call("promote", misspelt.id, code=2).stderr


def test_promotion_by_hand_finishes_the_run(
    misspelt: Run, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading is the only check that is left out: the sample's artifact is no real model."""
    monkeypatch.setattr(promotion, "smoke_test", lambda folder: None)
    wanted = resolve_promotion(misspelt, "", None, None, ("evaluate.perplexity<20",))
    promote_run(misspelt, wanted)
    status = misspelt.status()
    assert status.state == "finished" and run_failures(misspelt, status) == []
    assert status.registered == [{"model": "demo", "version": 1, "aliases": ["best"]}]


def test_prose_wraps_between_words_on_a_terminal(
    misspelt: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.run_summary import print_failures

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    print_failures(misspelt, misspelt.status())
    lines = capsys.readouterr().err.splitlines()
    assert all(len(line) <= 60 for line in lines[:-1])
    assert lines[1].startswith("       ")
    assert MISSPELT in " ".join(" ".join(lines).split())


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("gpt.perplexity<3", "which this run lacks: gpt had no data for it"),
        ("clean.documents>3", "needs clean, which is skipped: left out by --only"),
        ("dialogue.loss>3", ""),
        ("dialogue.los>3", "did you mean 'dialogue.loss'?"),
        ("gtp.loss>3", "the run has no stage 'gtp'"),
    ],
)
def test_a_gate_without_a_value_is_refused_with_its_cause(
    run: Run, monkeypatch: pytest.MonkeyPatch, gate: str, message: str
) -> None:
    monkeypatch.setattr(promotion, "smoke_test", lambda folder: None)
    plan = [{"name": "clean", "uses": "clean", "verdict": "skip", "reason": "left out by --only"}]
    stages = [
        {"name": s.name, "uses": s.uses, "verdict": "cached", "fingerprint": s.fingerprint}
        for s in run.status().stages[1:]
    ]
    run.append("plan", stages=plan + stages)
    for stage in stages:
        run.append("stage.cached", stage=stage["name"], fingerprint=stage["fingerprint"])
    wanted = resolve_promotion(run, "gpt", "demo", None, (gate,))
    if not message:
        assert promote_run(run, wanted, dry_run=True)["gates"][0]["passed"]
        return
    with pytest.raises(UserError) as caught:
        promote_run(run, wanted)
    assert message in f"{caught.value} {caught.value.remedy}"
