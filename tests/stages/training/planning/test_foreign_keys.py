"""Keys of other frameworks, answered with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from remedy_law import known_names, unknown_names

from launch.commands.stages import list_parameters
from pipeline.spec.validation_messages import ValidationIssue, validation_issues
from pipeline.stage import Params
from pipeline.stage_registry import find_stage
from stages.training.planning.foreign_keys import FOREIGN_KEYS, OUR_KEYS, SFT_KEYS

ROOT = Path(__file__).parents[4]
TRAININGS = ("pretrain", "sft", "reward", "ppo", "clip")
ANSWERS = {
    "pretrain": {
        "learning_rate": "train.lr",
        "batch_size": "train.global_batch_size",
        "per_device_train_batch_size": "train.micro_batch_size",
        "gradient_accumulation_steps": "train.global_batch_size",
        "epochs": "train.steps",
        "num_train_epochs": "train.steps",
        "max_steps": "train.steps",
        "max_tokens": "train.tokens",
        "warmup_ratio": "train.warmup_steps",
        "num_warmup_steps": "train.warmup_steps",
        "lr_scheduler_type": "train.lr_schedule",
        "max_grad_norm": "train.grad_clip",
        "adam_epsilon": "train.eps",
        "hidden_size": "model.hidden_size",
        "n_embd": "model.hidden_size",
        "num_layers": "model.num_layers",
        "num_hidden_layers": "model.num_layers",
        "n_head": "model.num_heads",
        "seq_len": "model.context_length",
        "block_size": "model.context_length",
        "fp16": "train.dtype to float16",
        "bf16": "train.dtype to bfloat16",
        "gpus": "workers.gpus",
        "nproc_per_node": "workers.num",
        "steps": "train.steps",
        "lr": "train.lr",
        "cpus": "workers.cpus",
        "save_steps": "train.checkpoint_interval",
        "gradient_checkpointing": "model.activation_checkpointing",
        "zero_stage": "train.zero_stage",
        "resume_from_checkpoint": "headwater resume",
    },
    "sft": {
        "learning_rate": "train.lr",
        "num_train_epochs": "train.epochs",
        "max_seq_length": "max_length",
        "model_name_or_path": "pretrained",
    },
    "reward": {"warmup_steps": "train.warmup_steps", "optim": "train.optimizer"},
    "ppo": {"cliprange": "clip_range", "init_kl_coef": "kl_coef", "lam": "gae_lambda"},
    "clip": {
        "num_layers": "model.vision.num_layers or model.text.num_layers",
        "embedding_size": "model.vision.hidden_size",
        "gpus": "workers.num",
    },
    "clean": {"gpus": "workers.gpus", "cpus": "workers.cpus"},
}


def issue_of(params: type[Params], data: dict[str, Any], key: str) -> ValidationIssue:
    with pytest.raises(ValidationError) as caught:
        params.model_validate(data, strict=True)
    return next(i for i in validation_issues(caught.value, params, data, ()) if key in i.path)


@pytest.mark.parametrize(
    ("stage", "word", "answer"),
    [(stage, word, answer) for stage, rows in ANSWERS.items() for word, answer in rows.items()],
)
def test_a_foreign_key_is_answered_with_ours(stage: str, word: str, answer: str) -> None:
    found = issue_of(find_stage(stage).params, {word: 1}, word)
    assert answer in found.remedy


@pytest.mark.parametrize("word", ["learning_rate", "max_steps", "fp16", "batch_size"])
def test_it_is_answered_within_a_section_too(word: str) -> None:
    found = issue_of(find_stage("pretrain").params, {"train": {word: 1}}, word)
    assert "train." in found.remedy and "did you mean" not in found.remedy


def test_all_keys_that_are_named_exist() -> None:
    keys = {
        parameter.name
        for stage in TRAININGS
        for parameter in list_parameters(find_stage(stage).params)
    }
    for ours in OUR_KEYS:
        assert any(f".{key}".endswith(f".{ours}") for key in keys), ours
    known = known_names(ROOT)
    for words in (FOREIGN_KEYS, SFT_KEYS):
        for answer in words.values():
            if isinstance(answer, tuple):
                assert unknown_names(answer[1], known, frozenset()) == []


@pytest.mark.parametrize("stage", TRAININGS)
def test_no_key_of_ours_is_called_foreign_where_it_stands(stage: str) -> None:
    params = find_stage(stage).params
    assert not set(params.unsupported_keys) & set(params.model_fields)


def test_words_are_in_lower_case_and_once() -> None:
    words = [word for listed in OUR_KEYS.values() for word in listed.split()]
    assert len(words) == len(set(words))
    assert all(word == word.lower() for word in FOREIGN_KEYS)
