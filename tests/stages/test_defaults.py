"""Defaults of all stages: the same whether a part of a section is written or nothing of it."""

import pytest

from pipeline.stage import Section, nested_sections
from pipeline.stage_registry import all_stages
from stages.ppo import PPOParams
from stages.sft import SftParams
from stages.training.training_params import TrainSection

STAGES = [stage for stage in all_stages() if stage.run.__module__.startswith("stages.")]
TRAINED = [stage for stage in STAGES if "train" in stage.params.model_fields]


def defaults(model: type[Section]):
    """Yield each section inside a model: its place, its type and the default to compare with."""
    for name, info in model.model_fields.items():
        if info.is_required():
            continue
        sections = list(nested_sections(info.annotation))
        default = info.get_default(call_default_factory=True)
        for inner in sections:
            # A default is of one of the model families, and is compared with that one's.
            other = type(default) is not inner and type(default) in sections
            yield f"{model.__name__}.{name}", inner, None if other else default
            yield from defaults(inner)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.uses)
def test_writing_one_key_of_a_section_leaves_the_others_as_they_were(stage):
    for where, section, default in defaults(stage.params):
        if default is not None:  # left out, there is no such section at all
            assert default == section(), where


def test_fine_tuning_decays_nothing_whatever_else_is_written():
    assert SftParams().train.weight_decay == 0
    written = SftParams(train={"steps": 50}).train
    assert (written.weight_decay, written.global_batch_size, written.lr) == (0, 16, 3e-4)


@pytest.mark.parametrize("stage", TRAINED, ids=lambda stage: stage.uses)
def test_few_steps_are_no_error_of_a_default(stage):
    assert len(TRAINED) == 5
    for steps in (1, 2, 3):
        train: TrainSection = stage.params(train={"steps": steps}).train
        assert train.num_warmup_steps <= steps


def test_a_written_warmup_longer_than_the_steps_is_an_error():
    with pytest.raises(ValueError, match=r"warmup_steps \(5\) is larger than steps \(3\)"):
        PPOParams(train={"steps": 3, "warmup_steps": 5})
