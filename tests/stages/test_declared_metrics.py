"""The metrics that stages declare: gates on others are refused, and no stage reports others."""

from __future__ import annotations

from pathlib import Path

import pytest
from declared_metrics import undeclared

from pipeline.context import Context
from pipeline.errors import SpecError
from pipeline.spec.spec_checker import load_spec
from pipeline.stage import Inputs, Params, Stage, stage
from pipeline.stage_registry import all_stages, find_stage

PIPELINE = """
name: gates
stages:
  clean: {uses: clean, sources: ["*.txt"]}
  tokenizer: {uses: tokenize.train, documents: "${clean}", vocab_size: 500}
  tokens: {uses: tokenize.pack, documents: "${clean}", tokenizer: "${tokenizer}"}
  gpt: {uses: pretrain, tokens: "${tokens}", tokenizer: "${tokenizer}"}
promote: {model: gates, stage: gpt, require: [%s]}
"""


def gate_problems(folder: Path, *gates: str) -> list[tuple[str, str]]:
    file = folder / "gates.yaml"
    file.write_text(PIPELINE % ", ".join(gates))
    try:
        load_spec(file)
    except SpecError as error:
        return [(problem.message, problem.remedy) for problem in error.problems]
    return []


def test_a_gate_on_a_misspelt_metric_is_refused_by_plan(tmp_path: Path) -> None:
    [(message, remedy)] = gate_problems(tmp_path, "gpt.perplexty<20", "gpt.eval_loss<3")
    assert message == "gpt reports no metric 'perplexty'"
    assert remedy.startswith("did you mean 'perplexity'? known: bits_per_byte, ")


def test_a_gate_on_a_misspelt_stage_is_refused_by_plan(tmp_path: Path) -> None:
    assert gate_problems(tmp_path, "gtp.loss<3") == [
        ("there is no stage 'gtp'", "did you mean 'gpt'? known: clean, gpt, tokenizer, tokens")
    ]


def test_a_gate_on_a_pattern_of_metrics_is_accepted(tmp_path: Path) -> None:
    assert gate_problems(tmp_path, "clean.left_out_gopher<10", "gpt.epochs_0<=4") == []


def test_metrics_of_a_stage_that_declares_none_are_not_checked() -> None:
    assert undeclared(find_stage("clean"), ["documents", "left_out_c4", "kept"]) == ["kept"]
    free = Stage("free", find_stage("clean").run, Params, "Documents", 1)
    assert undeclared(free, ["anything"]) == []


def test_a_stage_that_reports_an_undeclared_metric_fails_its_test(tmp_path: Path) -> None:
    before = dict(Stage.registry)
    try:

        @stage("undeclared", output="Documents", version=1, metrics={"known": "a number"})
        def undeclared_stage(params: Params, inputs: Inputs, out: Path, ctx: Context) -> None:
            ctx.result(known=1, other=2)

        with pytest.raises(AssertionError, match=r"undeclared does not declare \['other'\]"):
            undeclared_stage(Params(), Inputs(), tmp_path, Context.local(tmp_path))
    finally:
        Stage.registry.clear()
        Stage.registry.update(before)


def test_every_stage_declares_its_metrics() -> None:
    own = [stage for stage in all_stages() if stage.run.__module__.startswith("stages.")]
    assert len(own) > 15
    assert [stage.uses for stage in own if not stage.metrics] == []
    assert all(meaning for stage in own for meaning in (stage.metrics or {}).values())
