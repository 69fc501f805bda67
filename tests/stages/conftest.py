"""A small world of questions and answers for the stages of alignment, built once a session."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "alignment"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    import toyworld

    return toyworld.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def scorer(world):
    """A reward model of that world: the policy's body under a head that was never trained."""
    import torch

    from stages.models.heads import Scorer
    from stages.models.huggingface import load_language_model, save_scorer

    torch.manual_seed(3)
    folder = world / "scorer"
    save_scorer(Scorer(load_language_model(world / "policy")), folder, world / "tokenizer")
    return folder
