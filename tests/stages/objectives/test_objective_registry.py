"""The registry of pretraining objectives: names, the default, and what an objective needs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import InputError
from stages.objectives import objective_registry
from stages.objectives.causal_lm import CausalLMParams
from stages.objectives.objective_registry import (
    ObjectiveParams,
    objective_union,
    register_objective,
)
from stages.pretrain import PretrainParams, pretraining_task


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> None:
    objective_registry.objective_sections()
    monkeypatch.setattr(objective_registry, "_SECTIONS", dict(objective_registry._SECTIONS))


class MaskedParams(ObjectiveParams):
    """An objective that needs a special token."""

    type: Literal["masked"] = "masked"
    special_tokens: ClassVar[tuple[str, ...]] = ("<mask>",)
    probability: float = 0.15


@pytest.mark.usefixtures("sections")
def test_an_objective_is_selected_by_type_and_the_default_may_be_left_out() -> None:
    register_objective(MaskedParams)
    adapter = TypeAdapter(objective_union())
    assert adapter.validate_python({"type": "masked", "probability": 0.3}).probability == 0.3
    assert adapter.validate_python({"z_loss_coef": 0.1}) == CausalLMParams(z_loss_coef=0.1)
    with pytest.raises(ValidationError, match="'causal_lm', 'masked'"):
        adapter.validate_python({"type": "unknown"})


def test_with_one_objective_there_is_no_choice() -> None:
    params = PretrainParams.model_validate({"objective": {"z_loss_coef": 0.1}})
    assert params.objective == CausalLMParams(z_loss_coef=0.1)
    assert PretrainParams(objective=CausalLMParams()) == PretrainParams()


@pytest.mark.usefixtures("sections")
def test_a_name_is_one_literal_and_registered_once() -> None:
    class Same(ObjectiveParams):
        """The name of another."""

        type: Literal["causal_lm"] = "causal_lm"

    class Nameless(ObjectiveParams):
        """No name."""

    with pytest.raises(TypeError, match="objective 'causal_lm' is registered twice"):
        register_objective(Same)
    with pytest.raises(TypeError, match="a Literal of one name"):
        register_objective(Nameless)
    assert register_objective(CausalLMParams) is CausalLMParams


def test_a_special_token_that_the_tokenizer_lacks_is_an_error(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLMParams, "special_tokens", ("<mask>",))
    params = PretrainParams.model_validate({"model": {"context_length": 16}})
    with pytest.raises(InputError, match="the tokenizer has no special token <mask>"):
        pretraining_task(params, [world / "tokens"], world / "tokenizer")
    monkeypatch.setattr(CausalLMParams, "special_tokens", ("</s>",))
    assert pretraining_task(params, [world / "tokens"], world / "tokenizer").init_from is None


def test_a_capability_that_the_model_family_lacks_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = PretrainParams()
    assert not list(params.check({}))
    monkeypatch.setattr(CausalLMParams, "capabilities", frozenset({"causal", "encoder"}))
    assert [str(problem) for problem in params.check({})] == [
        "objective.type: causal_lm needs a model family with encoder "
        "(select another model.family than gpt2)"
    ]
