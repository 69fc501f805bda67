"""The ppo stage without its processes: parameters, prompts, pages, comparison."""

import json
import shutil

import numpy as np
import pytest
import torch
from toy_alignment import another_tokenizer, write_model

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from stages.alignment.kl_controller import AdaptiveKLController
from stages.alignment.policy_comparison import before_and_after
from stages.alignment.prompts import read_prompts
from stages.data.conversation_dataset import Conversation, Message, write_conversations
from stages.data.token_store import TokenStore, write_index, write_shard
from stages.data.tokenizers.sentencepiece_tokenizer import ASSISTANT, BOS
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.model_io import load_language_model, load_reward_model, save_reward_model
from stages.models.reward_head import RewardModel
from stages.objectives.ppo_ptx import (
    PPOObjective,
    PretrainingBatches,
    pretraining_windows,
)
from stages.ppo import PPOParams, encoded_prompts, prompt_encoder
from stages.pretrain import PretrainParams
from stages.training.ranks.rank import Rank


def made(world, scorer, tokens=("tokens",), **options):
    params = PPOParams(**{"max_new_tokens": 10, "train": {"global_batch_size": 16}} | options)
    encoder = prompt_encoder(world / "policy", scorer, params.max_new_tokens)
    prompts = [
        read_prompts(world / "conversations", split, world / "policy", encoder.limit)
        for split in ("train", "eval")
    ]
    objective = PPOObjective(
        world / "policy", scorer, *prompts, tuple(world / name for name in tokens),
        params.settings(),
    )  # fmt: skip
    objective.trainables = objective.setup(Rank(), params.train, seed=5)
    return objective


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        (
            {"train": {"global_batch_size": 60}, "num_minibatches": 8},
            "num_minibatches",
            "60 episodes do not",
        ),
        (
            {"train": {"global_batch_size": 12}, "workers": {"num": 4}},
            "num_minibatches",
            "12 episodes",
        ),
        (
            {"train": {"global_batch_size": 33}, "workers": {"num": 2}},
            "train.global_batch_size",
            "33 is not",
        ),
        (
            {"train": {"batch_size_rampup": {"initial_batch_size": 8, "steps": 4}}},
            "train.batch_size_rampup",
            "constant batch size",
        ),
    ],
)
def test_what_does_not_add_up_is_a_problem(options, key, message):
    problems = {problem.key: problem.message for problem in PPOParams(**options).check({})}
    assert message in problems[key]


def test_the_defaults_have_no_problem():
    assert not list(PPOParams(workers={"num": 2}).check({}))


def test_a_response_needs_room_beside_its_prompt():
    policy = PretrainParams.model_validate({"model": {"context_length": 32}})
    (problem,) = PPOParams(max_new_tokens=32).check({"policy": policy})
    assert "32 leaves no room for a prompt" in problem.message


def test_the_ratio_is_held_tighter_in_float32():
    assert PPOParams().settings().update.ratio_tolerance == 1e-3
    low = PPOParams(train={"dtype": "bfloat16"}).settings()
    assert low.update.ratio_tolerance == 0.25
    decoding = PPOParams().settings().decoding  # the softmax over the whole vocabulary
    assert (decoding.top_k, decoding.top_p, decoding.suppress_tokens) == (0, 1, ())
    assert decoding.temperature > 0


def test_the_critic_starts_as_the_reward_model_apart_from_it(world, scorer):
    objective = made(world, scorer)
    critic = objective.trainables["value"].module
    for a, b in zip(critic.parameters(), objective.reward.parameters(), strict=True):
        assert torch.equal(a, b) and a is not b and a.requires_grad and not b.requires_grad
    policy = objective.trainables["policy"].module
    assert policy.wte.weight is not objective.reference.wte.weight
    assert not any(p.requires_grad for p in objective.reference.parameters())


def test_prompts_end_where_the_assistant_begins(world):
    prompts = read_prompts(world / "conversations", "eval", world / "policy", 30)
    assert len(prompts) == 40
    assert all(ids[0] == BOS and ids[-1] == ASSISTANT for ids in prompts)


def test_no_prompt_that_fits_is_an_error(world, scorer, tmp_path):
    params = PPOParams(max_new_tokens=39)
    encoder = prompt_encoder(world / "policy", scorer, params.max_new_tokens)
    with pytest.raises(InputError, match="none of 200 prompts has at most 1 tokens"):
        encoded_prompts(encoder, world / "conversations", params, Context.local(tmp_path))
    held_out = [Conversation("e", (Message("user", "why?"), Message("assistant", "so")), "eval")]
    write_conversations(tmp_path / "own", held_out)
    with pytest.raises(InputError, match="no conversations to train on"):
        encoded_prompts(encoder, tmp_path / "own", params, Context.local(tmp_path))


def test_prompts_without_room_are_counted_in_both_splits(world, scorer, tmp_path):
    asked = [Message("user", "what does the owl do? " * n) for n in (1, 9)]
    silent = Conversation("s", (Message("assistant", "so"),))
    talks = [Conversation(f"t{len(m.content)}", (m,)) for m in asked]
    talks += [Conversation(f"e{len(m.content)}", (m,), "eval") for m in asked]
    write_conversations(tmp_path / "own", [*talks, silent])
    params, ctx = PPOParams(max_new_tokens=10), Context.local(tmp_path)
    encoder = prompt_encoder(world / "policy", scorer, params.max_new_tokens)
    train, held_out = encoded_prompts(encoder, tmp_path / "own", params, ctx)
    assert list(train) == read_prompts(tmp_path / "own", "train", world / "policy", encoder.limit)
    assert len(train) == len(held_out) == 1
    found = json.loads((ctx.observed / "results.json").read_text())
    assert (found["left_out_too_long"], found["left_out_no_prompt"]) == (1, 1)
    assert found["eval_left_out_too_long"] == 1
    warnings = json.loads((ctx.observed / "warnings.json").read_text())
    assert "1 of 2 held-out prompts (50.0%) are left out" in warnings[1]["message"]


def test_models_of_other_vocabularies_do_not_go_together(world, tmp_path):
    other = RewardModel(
        GPT(GPTConfig(vocab_size=50, context_length=40, num_layers=1, hidden_size=16, num_heads=1))
    )
    save_reward_model(other, tmp_path, world / "tokenizer")
    with pytest.raises(InputError, match="the reward model 50"):
        made(world, tmp_path)


def test_models_and_pages_of_other_tokenizers_of_one_size_are_refused(world, scorer, tmp_path):
    other = another_tokenizer(scorer, tmp_path / "scorer")
    with pytest.raises(InputError, match=f"the tokenizers differ: .* in {other}"):
        made(world, other)
    store = shutil.copytree(world / "tokens", tmp_path / "tokens")
    index = json.loads((store / "index.json").read_text())
    (store / "index.json").write_text(json.dumps({**index, "tokenizer": "0" * 32}))
    with pytest.raises(InputError, match="packed with tokenizer 000000000000 of 340 ids"):
        made(world, scorer, tokens=(store,))


def test_pages_are_other_windows_for_every_minibatch(world, scorer):
    objective = made(world, scorer, ptx_ratio=1.0, ptx_length=12)
    pages = [PretrainingBatches(objective, step) for step in range(2)]
    seen = [tuple(row.tolist()) for p in pages for n in range(8) for row in p.pieces(n)[0]]
    assert len(seen) == 2 * 8 * 4 and len(set(seen)) == len(seen)
    piece = pages[0].pieces(0)[0]
    assert piece.shape == (4, 13)
    policy = load_language_model(world / "policy")
    logits = policy(piece[:, :-1]).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, piece[:, 1:].flatten())
    torch.testing.assert_close(pages[0].loss(policy, piece), expected)


def test_ranks_read_their_parts_of_a_page(world, scorer):
    objective = made(world, scorer, ptx_ratio=1.0, ptx_length=12)
    whole = PretrainingBatches(objective, 3).pieces(2)[0]
    parts = []
    for index in range(2):
        objective.rank = Rank(index=index, world=2)
        parts.append(PretrainingBatches(objective, 3).pieces(2)[0])
    assert torch.equal(torch.cat(parts), whole)


def test_pages_of_several_stores_are_their_mixture(world, scorer, tmp_path):
    flat = np.full(500, 20, "<u2")
    shard = write_shard(tmp_path, "train-0", flat, np.array([500], np.uint64))
    size = TokenStore(world / "tokens").vocab_size
    write_index(tmp_path, vocab_size=size, eos_id=3, splits={"train": [shard], "eval": []})
    objective = made(
        world, scorer, tokens=("tokens", tmp_path),
        ptx_ratio=1.0, ptx_length=12, mixture={"weights": [1, 3]},
    )  # fmt: skip
    rows = torch.cat(
        [PretrainingBatches(objective, step).pieces(n)[0] for step in range(2) for n in range(8)]
    )
    assert int((rows == 20).all(1).sum()) == len(rows) * 3 // 4
    (problem,) = PPOParams(mixture={"weights": [1, 3]}).check({f"tokens[{k}]": 0 for k in range(3)})
    assert str(problem).startswith("mixture.weights: 2 weights for 3 stores")


def test_windows_are_equally_many_on_every_rank():
    assert pretraining_windows(64, 4, 0.5, 1) == 8
    assert pretraining_windows(64, 4, 0.1, 4) == 4


def test_without_tokens_or_weight_there_is_no_pretraining_term(world, scorer):
    assert made(world, scorer, tokens=()).pretraining_corpus is None
    assert made(world, scorer, ptx_coef=0).pretraining_corpus is None


def test_the_state_beyond_weights_comes_back(world, scorer):
    options = {"kl_coef": 0.1, "kl_target": 2.0, "ema_decay": 0.9}
    first, second = made(world, scorer, **options), made(world, scorer, **options)
    assert isinstance(first.kl_controller, AdaptiveKLController)
    first.kl_controller.update(9.0, 5000)
    first._ema["ln_f.bias"] += 1
    second.load_state_dict(first.state_dict())
    assert second.kl_controller.kl_coef == first.kl_controller.kl_coef != 0.1
    assert torch.equal(second._ema["ln_f.bias"], first._ema["ln_f.bias"])


class Plain:
    """An engine that only looks: its updates change nothing."""

    zero_stage = 0

    def __init__(self, module):
        self.module, self.updates = module, 0

    def __call__(self, *inputs, **named):
        return self.module(*inputs, **named)

    def eval(self):
        self.module.eval()

    train = eval

    def backward(self, loss, *, last=True):
        pass

    def step(self):
        self.updates += 1

    def fragments(self):
        return []


def engines(objective):
    return {name: Plain(made.module) for name, made in objective.trainables.items()}


@pytest.mark.parametrize("grace", [0.0, 3600.0])
def test_a_long_iteration_is_stopped_in_its_middle(world, scorer, tmp_path, grace):
    objective, ctx = made(world, scorer, rollout_batch_size=4), Context.local(tmp_path)
    objective.rank, learners = Rank(ctx=ctx), engines(objective)
    objective.stop_grace = grace
    ctx.cancel_file.touch()
    if grace:
        objective.step(learners, 0)
        assert learners["policy"].updates == 8
        return
    with pytest.raises(Interrupted):
        objective.step(learners, 0)
    assert learners["policy"].updates == 0 and objective.rank.progress.count == 1


def test_an_update_is_stopped_between_micro_batches(world, scorer, tmp_path):
    objective = made(world, scorer, train={"global_batch_size": 16, "micro_batch_size": 1})
    ctx = Context.local(tmp_path)
    objective.rank, learners = Rank(ctx=ctx), engines(objective)
    objective.stop_grace = 0.0
    backward = learners["value"].backward

    def asked(*arguments, **named):
        ctx.cancel_file.touch()
        backward(*arguments, **named)

    learners["value"].backward = asked
    with pytest.raises(Interrupted):
        objective.step(learners, 0)
    assert learners["policy"].updates == 0


def test_an_evaluation_is_stopped_between_batches(world, scorer, tmp_path):
    objective, ctx = made(world, scorer, rollout_batch_size=4), Context.local(tmp_path)
    objective.rank, learners = Rank(ctx=ctx), engines(objective)
    assert objective.evaluate(learners, 0)["eval_kl"] == pytest.approx(0, abs=1e-4)
    assert objective.rank.progress.count == 10, "40 prompts are held out, of 64 that are wanted"
    ctx.cancel_file.touch()
    with pytest.raises(Interrupted):
        objective.evaluate(learners, 0)
    assert objective.rank.progress.count == 11


def test_held_out_prompts_are_counted_as_samples_of_an_evaluation(world, scorer):
    objective = made(
        world, scorer, train={"global_batch_size": 16, "eval_samples": 6}, rollout_batch_size=1
    )
    objective.evaluate(engines(objective), 0)
    assert objective.rank.progress.count == 6


def test_a_policy_compared_with_itself_has_not_moved(world, scorer):
    paths = {
        "before": world / "policy", "after": world / "policy", "reward": scorer,
        "prompts": world / "conversations",
    }  # fmt: skip
    seen = before_and_after(Rank(), **paths, max_new_tokens=10, count=12, shown=2)
    assert seen.metrics["reward_before"] == seen.metrics["reward_after"]
    assert seen.metrics["kl"] == pytest.approx(0, abs=1e-4)
    assert seen.metrics["reward_gain_stderr"] == 0
    assert len(seen.samples) == 2 and set(seen.samples[0]) == {"prompt", "before", "after"}
    assert seen.histograms[0] == seen.histograms[1]
    assert sum(seen.histograms[0][1]) == 12
    assert not before_and_after(Rank(index=1, world=2), **paths, max_new_tokens=10).metrics


def test_what_is_reported_is_the_scorers_own_score(world, scorer):
    paths = {
        "before": world / "policy", "after": world / "speaker", "reward": scorer,
        "prompts": world / "conversations",
    }  # fmt: skip
    seen = before_and_after(Rank(), **paths, max_new_tokens=10, count=12, shown=12)
    assert seen.metrics["kl"] > 0.5
    shown = [float(card["after"].rsplit("[", 1)[1][:-1]) for card in seen.samples]
    assert sum(shown) / 12 == pytest.approx(seen.metrics["reward_after"], abs=0.006)
    assert load_reward_model(scorer).body.config.context_length == 40


@pytest.mark.parametrize(("policy", "reward"), [("llama", "qwen3"), ("switch", "llama")])
def test_policy_and_reward_model_may_be_of_different_families(world, tmp_path, policy, reward):
    folders = {name: tmp_path / name for name in ("policy", "scorer")}
    write_model(folders["policy"], world / "tokenizer", policy)
    body = load_language_model(write_model(tmp_path / "base", world / "tokenizer", reward))
    save_reward_model(RewardModel(body), folders["scorer"], world / "tokenizer")
    for name in ("conversations", "tokens", "tokenizer"):
        (tmp_path / name).symlink_to(world / name)
    objective = made(tmp_path, folders["scorer"], ptx_length=12, ratio_tolerance=0.5)
    result = objective.step(engines(objective), 0)
    assert result.metrics["kl"] == pytest.approx(0, abs=1e-4)
    assert result.metrics["ptx_loss"] > 0 and result.metrics["value_loss"] > 0
    assert objective.evaluate(engines(objective), 0)["eval_kl"] == pytest.approx(0, abs=1e-4)
