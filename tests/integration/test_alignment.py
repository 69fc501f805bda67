"""Reward model, PPO and its resumption through the real processes and engines, on two ranks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_parity import assert_transformers_agree
from rank_groups import RankGroup

from pipeline.context import Context
from pipeline.errors import Interrupted
from stages.augment import AugmentParams, augment
from stages.data.conversation_dataset import Conversations
from stages.data.preference_dataset import Preferences
from stages.evaluate import EvaluateTasksParams, evaluate_tasks
from stages.models.model_io import load_language_model, save_reward_model
from stages.models.reward_head import RewardModel
from stages.ppo import PPOParams, ppo
from stages.reward import RewardParams, reward

pytestmark = pytest.mark.integration

PPO = PPOParams(
    seed=1,
    train={
        "steps": 6,
        "global_batch_size": 64,
        "lr": 1e-3,
        "warmup_steps": 0,
        "checkpoint_interval": 1,
    },
    max_new_tokens=10,
    kl_coef=0.05,
    kl_target=2.0,
    kl_horizon=500,
    ema_decay=0.3,
    workers={"num": 2},
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import toy_alignment

    return toy_alignment.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rewarded(world):
    import toy_alignment

    ctx = Context.local(world / "reward")
    params = RewardParams(train={"steps": 40, "lr": 1e-3}, workers={"num": 2})
    edges = toy_alignment.inputs(model=world / "policy", preferences=world / "preferences")
    reward(params, edges, ctx.out, ctx)
    return ctx


def results(ctx):
    return json.loads((ctx.observed / "results.json").read_text())


def series(ctx, key):
    lines = [json.loads(line) for line in (ctx.observed / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def hashes(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_every_step_says_what_was_spent_up_to_it(world, rewarded):
    tokens, flops = series(rewarded, "tokens"), series(rewarded, "flops")
    made = np.multiply(
        series(rewarded, "tokens_per_second"), series(rewarded, "step_seconds")
    ).cumsum()
    assert len(tokens) == 40
    assert tokens == pytest.approx(made.tolist())
    each = load_language_model(world / "policy").config.flops_per_token
    assert flops == pytest.approx([each * count for count in tokens])


def test_a_model_is_scored_on_tasks_by_two_ranks(world, tmp_path):
    import toy_alignment

    rows = [
        {"question": f"what does the {thing} do?", "answer": 1,
         "choices": [f"here {thing} the runs", f"the {thing} runs here"]}
        for thing in toy_alignment.ANIMALS + toy_alignment.TOOLS
    ]  # fmt: skip
    (tmp_path / "farm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ctx = Context.local(tmp_path / "work")
    params = EvaluateTasksParams(
        tasks=[str(tmp_path / "farm.jsonl")], num_fewshot=1, workers={"num": 2}
    )
    evaluate_tasks(params, toy_alignment.inputs(model=world / "policy"), ctx.out, ctx)
    figures = json.loads((ctx.out / "metrics.json").read_text())
    assert figures == results(ctx)
    assert figures["farm_items"] == len(rows) and figures["farm_chance"] == 0.5
    assert figures["farm_acc"] == 1 and figures["centered"] == 1
    lines = (ctx.out / "items" / "farm.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == list(range(1, len(rows) + 1))
    titles = [panel["title"] for panel in json.loads((ctx.observed / "panels.json").read_text())]
    assert titles == ["Tasks", "farm: correct and wrong items"]


def play(world, rewarded, ctx):
    import toy_alignment

    edges = toy_alignment.inputs(
        policy=world / "policy", reward=rewarded.out, prompts=world / "conversations",
        tokens=world / "tokens",
    )  # fmt: skip
    ppo(PPO, edges, ctx.out, ctx)


def test_a_reward_model_learns_what_people_prefer(world, rewarded):
    found = results(rewarded)
    assert found["accuracy"] > 0.75
    assert found["margin"] > 0.5
    assert abs(found["demonstration_score"]) < 0.25 * found["margin"]
    assert found["prompts"] == len(Preferences(world / "preferences", "eval"))
    losses = series(rewarded, "loss")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert_transformers_agree(rewarded.out)


def test_ppo_raises_the_reward_and_goes_on_to_the_same_bytes(world, rewarded, tmp_path):
    whole = Context.local(tmp_path / "whole")
    play(world, rewarded, whole)
    found, rewards = results(whole), series(whole, "reward")
    assert len(rewards) == PPO.train.steps
    assert found["reward_after"] > found["reward_before"]
    assert sum(rewards[-2:]) > sum(rewards[:2])
    assert 0 < found["kl"] < 20
    assert len(set(series(whole, "kl_coef"))) > 1
    assert series(whole, "ptx_loss")[-1] < series(whole, "ptx_loss")[0]

    stopped = Context.local(tmp_path / "stopped")
    stopped.cancel_file.touch()
    with pytest.raises(Interrupted):
        play(world, rewarded, stopped)
    assert not (stopped.out / "config.json").exists()
    stopped.cancel_file.unlink()
    play(world, rewarded, stopped)
    assert series(stopped, "reward") == rewards
    assert series(stopped, "kl_coef") == series(whole, "kl_coef")
    assert hashes(stopped.out) == hashes(whole.out)

    assert_transformers_agree(whole.out)


def test_ppo_trains_a_llama_on_the_scores_of_a_qwen3(world, tmp_path):
    """Policy and reward model are of different families with one tokenizer."""
    import toy_alignment

    tokenizer = world / "tokenizer"
    policy = toy_alignment.write_model(tmp_path / "policy", tokenizer, "llama", steps=60)
    base = toy_alignment.write_model(tmp_path / "base", tokenizer, "qwen3", steps=60)
    first, ctx = Context.local(tmp_path / "reward"), Context.local(tmp_path / "ppo")
    train = {"steps": 30, "lr": 1e-3}
    edges = toy_alignment.inputs(model=base, preferences=world / "preferences")
    reward(RewardParams(train=train, workers={"num": 2}), edges, first.out, first)
    assert results(first)["accuracy"] > 0.7
    edges = toy_alignment.inputs(
        policy=policy, reward=first.out, prompts=world / "conversations", tokens=world / "tokens"
    )
    ppo(PPO, edges, ctx.out, ctx)
    found = results(ctx)
    assert found["reward_after"] > found["reward_before"]
    assert found["kl"] > 0
    assert_transformers_agree(ctx.out)


@pytest.fixture(scope="module")
def scored(world):
    """The world with a reward model that was never trained."""
    torch.manual_seed(3)
    save_reward_model(
        RewardModel(load_language_model(world / "policy")), world / "scorer", world / "tokenizer"
    )
    return world


def test_two_engines_add_up_the_gradients_of_ppo_and_of_pretraining(pair: RankGroup, scored: Path):
    """Two ranks, ZeRO-1, micro-batches, against one expression in one process."""
    import ppo_cases

    first, second = pair.group.run(ppo_cases.gradient_of_engines, scored)
    expected = ppo_cases.gradient_by_hand(scored)
    largest = max(abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (first[name] == second[name]).all()
        np.testing.assert_allclose(first[name], gradient, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("zero", [1, 3])
def test_the_average_of_a_policy_is_of_its_float32_weights(
    pair: RankGroup, scored: Path, zero: int
):
    """In bfloat16 the module's own weights do not show a small step."""
    import ppo_cases

    for wrong, moved in pair.group.run(ppo_cases.averages, scored, zero):
        assert wrong < 1e-9 < 1e-7 < moved


def test_a_speaker_labels_what_has_no_question(world, tmp_path):
    import toy_alignment

    ctx = Context.local(tmp_path)
    edges = toy_alignment.inputs(
        speaker=world / "speaker", targets=world / "conversations", forward=world / "policy"
    )
    augment(AugmentParams(max_new_tokens=12, num_candidates=3), edges, ctx.out, ctx)
    found, mixed = results(ctx), Conversations(ctx.out)
    made = [c for c in mixed if c.meta.get("synthetic")]
    assert len(made) == found["synthetic"] > 0
    assert len(mixed) == found["real"] + found["synthetic"]
    assert len(Conversations(ctx.out, "eval")) == len(
        Conversations(world / "conversations", "eval")
    )
    rejected = Conversations(ctx.out / "rejected", None)
    assert len(made) + len(rejected) == found["candidates"]
    assert all(c.meta["outcome"] == "kept" for c in made)
    assert not any(c.meta["outcome"] == "kept" for c in rejected)
    answers = {c.response for c in Conversations(world / "conversations", "unlabelled")}
    assert {c.response for c in made} <= answers
