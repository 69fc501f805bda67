"""Models that a plan refuses before anything runs, by the files of imported folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from chat_model_folders import CONTEXT, write_chat_model, write_chat_tokenizer

from pipeline.errors import SpecError
from pipeline.spec.spec_checker import load_spec
from pipeline.stage import Params
from stages.chat.template_checks import check_family, check_held_out, known_model
from stages.models import registry
from stages.models.registry import ModelFamily, families

ROOT = Path(__file__).parents[3]
QUESTIONS = {"uses": "python_questions"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    for family in ("llama", "qwen3", "gpt2"):
        write_chat_model(folder / family, family)
    return folder


@pytest.fixture(autouse=True)
def here(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)


def imported(family: str) -> dict[str, str]:
    return {"uses": "pretrained", "path": family}


def problems(tmp_path: Path, **stages: Any) -> list[str]:
    """Return what the plan of these stages refuses."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"name": "tried", "stages": stages}, sort_keys=False))
    try:
        load_spec(file)
    except SpecError as error:
        return [
            f"{problem.key}: {problem.message} ({problem.remedy})" for problem in error.problems
        ]
    return []


def test_a_model_without_a_template_is_refused_where_chats_arrive(tmp_path: Path) -> None:
    data = {"base": imported("gpt2"), "q": QUESTIONS, "p": {"uses": "python_preferences"}}
    found = problems(
        tmp_path,
        **data,
        reward={"uses": "reward", "model": "${base}", "preferences": "${p}"},
        asked={"uses": "augment", "speaker": "${base}", "targets": "${q}"},
        measured={"uses": "evaluate", "sft": "${base}", "conversations": "${q}"},
    )
    remedy = (
        "set chat_template in the stage that trains it on chats: chatml, llama3, plain, or the "
        "path of a jinja file"
    )
    assert found == [
        f"{key}: gpt2 has no chat template ({remedy})"
        for key in ("reward.model", "asked.speaker", "measured.sft")
    ]
    tokens = {"uses": "evaluate", "base": "${base}", "tokens": "artifact:0123456789abcdef"}
    assert not problems(tmp_path, **data, measured=tokens), "perplexity needs no chats"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_with_a_template_of_its_own_is_not(family: str, tmp_path: Path) -> None:
    """In a file, or in the tokenizer's config."""
    data = {"base": imported(family), "p": {"uses": "python_preferences"}}
    reward = {"uses": "reward", "model": "${base}", "preferences": "${p}"}
    assert not problems(tmp_path, **data, reward=reward)


def test_a_folder_without_a_tokenizer_is_refused(folders: Path, tmp_path: Path) -> None:
    write_chat_model(tmp_path / "bare", "qwen3")
    (tmp_path / "bare/tokenizer.json").unlink()
    found = problems(
        tmp_path,
        base=imported(str(tmp_path / "bare")),
        p={"uses": "python_preferences"},
        reward={"uses": "reward", "model": "${base}", "preferences": "${p}"},
    )
    assert found == [
        f"reward.model: {tmp_path / 'bare'} has no tokenizer that can be read "
        "(import a folder that has tokenizer.json)"
    ]


def ppo(policy: str = "${policy}", reward: str = "${reward}", **fields: Any) -> dict[str, Any]:
    return {"uses": "ppo", "policy": policy, "reward": reward, "prompts": "${q}", **fields}


def test_models_of_different_tokenizers_are_refused(folders: Path, tmp_path: Path) -> None:
    stages = {
        "q": QUESTIONS,
        "p": {"uses": "python_preferences"},
        "base": imported("llama"),
        "other": imported("qwen3"),
        "policy": {"uses": "sft", "model": "${base}", "conversations": "${q}"},
        "reward": {"uses": "reward", "model": "${other}", "preferences": "${p}"},
        "ppo": ppo(),
    }
    remedy = "use models that come from the same base model"
    assert problems(tmp_path, **stages) == [
        "ppo.reward: its tokenizer is not that of policy: the files of qwen3 and llama "
        f"differ ({remedy})"
    ]
    write_chat_model(tmp_path / "copy", "llama", unused=0)
    stages["other"] = imported(str(tmp_path / "copy"))
    assert not problems(tmp_path, **stages), "the same tokenizer in another folder"
    trained = {
        "docs": {"uses": "clean", "sources": ["python:docs"]},
        "cut": {"uses": "tokenize.train", "documents": "${docs}"},
        "tokens": {"uses": "tokenize.pack", "documents": "${docs}", "tokenizer": "${cut}"},
        "other": {"uses": "pretrain", "tokens": "${tokens}"},
    }
    assert problems(tmp_path, **stages | trained) == [
        "ppo.reward: its tokenizer is not that of policy: one is of llama, the other of "
        f"`tokenize.train` ({remedy})"
    ]


def test_models_that_are_compared_have_one_tokenizer(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        q=QUESTIONS,
        one=imported("llama"),
        two=imported("qwen3"),
        measured={
            "uses": "evaluate", "sft": "${one}", "augmented": "${two}", "conversations": "${q}",
        },
    )  # fmt: skip
    assert len(found) == 1 and found[0].startswith("measured.augmented: its tokenizer")


def test_answers_that_fill_the_context_of_an_imported_model_are_refused(tmp_path: Path) -> None:
    data = {"q": QUESTIONS, "p": {"uses": "python_preferences"}, "policy": imported("llama")}
    data["reward"] = {"uses": "reward", "model": "${policy}", "preferences": "${p}"}
    found = problems(
        tmp_path,
        **data,
        ppo=ppo(max_new_tokens=CONTEXT),
        asked={
            "uses": "augment", "speaker": "${policy}", "targets": "${q}", "max_new_tokens": 200,
        },
    )  # fmt: skip
    assert found == [
        f"ppo.max_new_tokens: {CONTEXT} leaves no room for a prompt in a context of "
        f"{CONTEXT} (lower it below {CONTEXT})",
        f"asked.max_new_tokens: 200 leaves no room for an answer in a context of {CONTEXT} "
        f"(lower it below {CONTEXT})",
    ]
    assert not problems(tmp_path, **data, ppo=ppo(max_new_tokens=CONTEXT - 1))


def test_a_folder_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    write_chat_model(tmp_path / "mamba", "qwen3")
    config = json.loads((tmp_path / "mamba/config.json").read_text())
    (tmp_path / "mamba/config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert problems(tmp_path, base=imported(str(tmp_path / "mamba"))) == [
        "base.path: cannot read models of type 'mamba' "
        "(give a folder of model_type gpt2, llama, qwen3 or qwen3_moe)"
    ]


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of another package, whose models cannot have a scalar head."""
    qwen3 = families()["qwen3"]
    made = ModelFamily(
        "headless", frozenset({"causal"}), qwen3.section, qwen3.build, qwen3.conversion, {}
    )
    monkeypatch.setattr(registry, "_FAMILIES", {**registry._FAMILIES, "headless": made})


def test_a_family_without_a_head_is_no_reward_model(headless: None) -> None:
    base: Any = SimpleNamespace(model=SimpleNamespace(family="headless"))
    (found,) = check_family({"model": base}, "model", "scalar_head")
    assert str(found) == (
        "model: a model of family headless cannot be a reward model "
        "(use one of gpt2, llama, qwen3, switch)"
    )
    (found,) = check_family({"model": base}, "model", "kv_cache")
    assert "cannot generate text" in str(found)


def test_data_without_an_eval_split_are_refused_where_it_is_measured() -> None:
    data: Any = SimpleNamespace(eval_share=0.0, split_field=None, eval_sources=())
    (found,) = check_held_out({"conversations": data}, "conversations", "the loss of answers")
    assert str(found) == (
        "conversations: its split `eval` is empty (eval_share: 0), and the loss of answers needs "
        "held-out data (set eval_share above 0 in the stage that reads the data, or disconnect "
        "the input)"
    )
    for other in ({"eval_share": 0.1}, {"split_field": "split"}, {"eval_sources": ("x",)}):
        held = SimpleNamespace(**{**vars(data), **other})
        assert not list(check_held_out({"conversations": held}, "conversations", "it"))  # type: ignore[dict-item]


def test_the_nearest_stage_counts(folders: Path) -> None:
    """A pretraining from an imported model has its tokenizer, and a template that was given."""
    upstream: dict[str, Any] = {
        "policy": SimpleNamespace(chat_template="chatml"),
        "policy.model": SimpleNamespace(),
        "policy.model.init_from": SimpleNamespace(model_folder=Path("gpt2")),
        "policy.model.init_from.model": SimpleNamespace(model_folder=Path("never")),
    }
    found = known_model(upstream, "policy")
    assert (found.folder, found.family, found.context_length) == (Path("gpt2"), "gpt2", CONTEXT)
    assert found.foreign and found.has_template
    assert known_model({"policy": Params()}, "policy") == known_model({}, "policy")


def test_a_headwater_folder_needs_no_template(world: Path) -> None:
    base: Any = SimpleNamespace(model_folder=world / "policy")
    found = known_model({"model": base}, "model")
    assert not found.foreign and found.has_template


def test_of_several_templates_the_default_one_counts(tmp_path: Path) -> None:
    folder = tmp_path / "tools"
    write_chat_tokenizer(folder, "gpt2")
    base: Any = SimpleNamespace(model_folder=folder)
    for names, expected in ((["tool_use"], False), (["tool_use", "default"], True)):
        listed = [{"name": name, "template": "{{ messages }}"} for name in names]
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
        assert known_model({"model": base}, "model").has_template is expected


def test_a_plan_of_an_imported_model_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    stages = {
        "q": QUESTIONS, "p": {"uses": "python_preferences"}, "policy": imported("llama"),
        "reward": {"uses": "reward", "model": "${policy}", "preferences": "${p}"}, "ppo": ppo(),
    }  # fmt: skip
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"name": "tried", "stages": stages}, sort_keys=False))
    code = (
        "import sys; from pipeline.spec.spec_checker import load_spec; load_spec(sys.argv[1]); "
        "print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
