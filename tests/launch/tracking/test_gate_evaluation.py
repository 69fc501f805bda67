from __future__ import annotations

import pytest

from launch.tracking.gate_evaluation import (
    check_metrics_exist,
    evaluate_gate,
    flat_metrics,
    format_gate_table,
    require_passed,
)
from pipeline.errors import GateRefused, UserError
from pipeline.promotion_gates import Gate

METRICS = {"evaluate.perplexity": 18.4, "reward.accuracy": 0.75, "a.b.c/d": float("nan")}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("evaluate.perplexity<20", True),
        ("evaluate.perplexity < 18.4", False),
        ("evaluate.perplexity<=18.4", True),
        ("evaluate.perplexity >= 18.4", True),
        ("evaluate.perplexity==18.4", True),
        ("evaluate.perplexity>1.9e1", False),
        ("reward.accuracy>=champion+0.01", True),  # 0.74 + 0.01 is 0.75, as people count
        ("reward.accuracy >= champion + 0.02", False),
        ("reward.accuracy>champion-0.1", True),
        ("reward.accuracy==champion", False),
        ("a.b.c/d<1", False),
        ("a.b.c/d>=1", False),
    ],
)
def test_evaluate_gate(text: str, passed: bool) -> None:
    line = evaluate_gate(Gate.parse(text), METRICS, {"reward.accuracy": 0.74})
    assert line["passed"] is passed
    assert line["gate"] == text.strip()


def test_first_champion_passes_relative_gates() -> None:
    line = evaluate_gate(Gate.parse("reward.accuracy>=champion+0.5"), METRICS, None)
    assert line["passed"]
    assert line["note"] == "there is no champion yet"


def test_unrecorded_champion_value_fails() -> None:
    line = evaluate_gate(Gate.parse("reward.accuracy>=champion"), METRICS, {"other": 1.0})
    assert not line["passed"]
    assert "was not recorded" in line["note"]


def test_absolute_gate_shows_the_champions_value() -> None:
    line = evaluate_gate(Gate.parse("reward.accuracy>0.5"), METRICS, {"reward.accuracy": 0.7})
    assert (line["threshold"], line["champion"]) == (0.5, 0.7)


def test_an_unknown_metric_names_the_nearest() -> None:
    gates = [Gate.parse("evaluate.perplexity<20"), Gate.parse("evaluate.perplexty<20")]
    check_metrics_exist(gates[:1], METRICS)
    with pytest.raises(UserError) as caught:
        check_metrics_exist(gates, METRICS)
    assert "evaluate.perplexity" in caught.value.remedy


def test_a_refusal_shows_the_whole_table() -> None:
    texts = ("evaluate.perplexity<20", "reward.accuracy>0.8", "reward.accuracy>champion")
    lines = [evaluate_gate(Gate.parse(text), METRICS, None) for text in texts]
    with pytest.raises(GateRefused) as caught:
        require_passed(lines, "talker", "champion")
    assert caught.value.exit_code == 3
    assert caught.value.gates == lines
    assert "1 of 3 gates failed" in str(caught.value)
    assert format_gate_table(lines) in str(caught.value)
    assert "FAIL  reward.accuracy>0.8: 0.75 against 0.8" in str(caught.value)
    require_passed([lines[0]], "talker", "champion")


def test_figures_are_named_by_their_stage() -> None:
    assert flat_metrics({"b": {"y": 2, "x": 1}, "a": {"z": 3}}) == {"a.z": 3, "b.x": 1, "b.y": 2}
