"""A user's files and a folder of the hub become an aligned model, by one pipeline on two ranks."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_model_folders import TOKENS, token_ids, write_chat_model
from hf_parity import assert_transformers_agree
from toy_alignment import conversation, preference
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversations
from stages.generation.generate import generate_text

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
TRAIN = {"global_batch_size": 16, "lr": 1e-3}
STAGES: dict[str, dict[str, Any]] = {
    "base": {"uses": "pretrained", "path": "llama"},
    "experts": {"uses": "pretrained", "path": "qwen3_moe"},
    "questions": {"uses": "conversations", "sources": ["chats.jsonl"], "eval_share": 0.1},
    "pairs": {"uses": "rankings", "sources": ["pairs.jsonl"], "eval_share": 0.1},
    "sft": {
        "uses": "sft", "model": "${base}", "conversations": "${questions}",
        "train": {**TRAIN, "steps": 40, "lr": 3e-3}, "workers": {"num": 2},
    },
    "sft-experts": {
        "uses": "sft", "model": "${experts}", "conversations": "${questions}",
        "train": {**TRAIN, "steps": 10, "zero_stage": 1}, "workers": {"num": 2},
    },
    "reward": {
        "uses": "reward", "model": "${sft}", "preferences": "${pairs}",
        "train": {**TRAIN, "steps": 20}, "workers": {"num": 2},
    },
    "ppo": {
        "uses": "ppo", "policy": "${sft}", "reward": "${reward}", "prompts": "${questions}",
        "max_new_tokens": 12, "train": {**TRAIN, "steps": 2}, "workers": {"num": 2},
    },
    "measured": {
        "uses": "evaluate", "sft": "${sft}", "policy": "${ppo}", "reward": "${reward}",
        "conversations": "${questions}", "preferences": "${pairs}", "max_new_tokens": 12,
        "num_prompts": 8,
    },
}  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_files(folder: Path) -> None:
    """Write two folders of the hub, conversations, pairs, and the pipeline."""
    for family in ("llama", "qwen3_moe"):
        write_chat_model(folder / family, family)
    rng = random.Random(0)
    chats = [conversation(i, "train", rng).messages for i in range(200)]
    chats.append((type(chats[0][0])("user", "tell me " * 80), chats[0][-1]))
    rows = [[{"role": m.role, "content": m.content} for m in turns] for turns in chats]
    for i, turns in enumerate(rows):
        turns[0]["content"] += f" number {i}"
    write_rows(folder / "chats.jsonl", [{"messages": turns} for turns in rows])
    pairs = []
    for i in range(160):
        found = preference(i, "train", rng)
        best, worst = (found.responses[found.ranks.index(rank)] for rank in (0, 2))
        prompt = f"{found.prompt[-1].content} number {i}"
        pairs.append({"prompt": prompt, "chosen": best, "rejected": worst})
    write_rows(folder / "pairs.jsonl", pairs)
    text = yaml.safe_dump({"name": "tuned", "stages": STAGES}, sort_keys=False)
    (folder / "tuned.yaml").write_text(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifacts of the run, by stage."""
    folder = tmp_path_factory.mktemp("tuned")
    write_files(folder)
    command = [sys.executable, "-m", "launch.cli", "run", "tuned.yaml"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    artifacts: dict[str, Path] = {}
    for manifest in (folder / "headwater-store/artifacts").glob("*/*/manifest.json"):
        artifacts[json.loads(manifest.read_text())["run"]["stage"]] = manifest.parent
    assert artifacts.keys() == STAGES.keys()
    return artifacts


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "observed/results.json").read_text())
    return found


def test_every_model_of_the_run_keeps_ids_and_ends(finished: dict[str, Path]) -> None:
    """The ids of all conversations are those of `apply_chat_template`, without any arguments."""
    for name, family in (("sft", "llama"), ("ppo", "llama"), ("sft-experts", "qwen3_moe")):
        folder = finished[name]
        tokenizer, chat = AutoTokenizer.from_pretrained(folder), ChatFormat.open(folder)
        read = 0
        for split in ("train", "eval"):
            for found in Conversations(finished["questions"], split):
                rows = [{"role": m.role, "content": m.content} for m in found.messages]
                ids = tokenizer.apply_chat_template(rows, return_dict=False)
                assert chat.encode(found.messages).ids.tolist() == ids
                read += 1
        assert read == 201
        ends = token_ids(folder, TOKENS[family].ends)
        assert set(GenerationConfig.from_pretrained(folder).eos_token_id) == set(ends)
        assert_transformers_agree(folder)
    assert_transformers_agree(finished["reward"])


def test_training_goes_well_and_counts_what_is_left_out(finished: dict[str, Path]) -> None:
    tuned, reward, ppo = (results(finished[name]) for name in ("sft", "reward", "ppo"))
    assert tuned["eval_loss"] < 3 and reward["accuracy"] > 0.6
    lost = sum(found.get(f"{p}left_out_too_long", 0) for found in (tuned,) for p in ("", "eval_"))
    assert lost == 1, "the long conversation"
    assert ppo["left_out_too_long"] == 1 and ppo["reward_after"] != ppo["reward_before"]
    measured = results(finished["measured"])
    assert measured["reward_accuracy"] == pytest.approx(reward["accuracy"])
    assert measured["answer_loss"] == pytest.approx(tuned["eval_loss"], rel=0.02)


def test_the_policy_answers_here_as_in_transformers(finished: dict[str, Path]) -> None:
    folder, prompt = finished["ppo"], "what does the cat do?"
    ours = generate_text(folder, prompt, 12, temperature=0.0).text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    drawn = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    response = tokenizer.decode(drawn[0, len(ids) :], skip_special_tokens=True)
    assert ours == response
