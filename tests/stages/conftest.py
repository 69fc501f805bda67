"""A small world of questions and answers for the stages of alignment, built once a session."""

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    import toy_alignment

    return toy_alignment.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def scorer(world):
    """A reward model of that world: the policy's body under a head that was never trained."""
    import torch

    from stages.models.model_io import load_language_model, save_reward_model
    from stages.models.reward_head import RewardModel

    torch.manual_seed(3)
    folder = world / "scorer"
    save_reward_model(
        RewardModel(load_language_model(world / "policy")), folder, world / "tokenizer"
    )
    return folder
