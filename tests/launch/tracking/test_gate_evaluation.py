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
    stages = {"evaluate": {"perplexity": 18.4, "accuracy": None}, "clean": {}}
    gates = [Gate.parse("evaluate.perplexity<20"), Gate.parse("evaluate.perplexty<20")]
    check_metrics_exist(gates[:1], stages)
    with pytest.raises(UserError) as caught:
        check_metrics_exist(gates, stages)
    assert "evaluate.perplexity" in caught.value.remedy
    assert caught.value.message.endswith("but evaluate recorded perplexity, accuracy")
    with pytest.raises(UserError, match="but clean recorded no metrics"):
        check_metrics_exist([Gate.parse("clean.documents>1")], stages)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "nan"])
def test_a_metric_without_a_number_passes_no_gate_and_says_why(value: float | None) -> None:
    for text in ("sft.loss<9", "sft.loss>=0", "sft.loss<champion+1"):
        row = evaluate_gate(Gate.parse(text), {"sft.loss": value}, {"sft.loss": value})
        assert not row["passed"]
        assert row["value"] is None
        assert "sft recorded no number as loss" in format_gate_table([row])
        assert f"{text}: –" in format_gate_table([row])


def test_a_champion_without_a_number_was_not_recorded() -> None:
    gate = Gate.parse("reward.accuracy>=champion")
    row = evaluate_gate(gate, METRICS, {"reward.accuracy": float("nan")})
    assert not row["passed"]
    assert row["note"] == "the champion's value was not recorded"


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
