"""Models of the hub through the stages of alignment, in process, with their own tokenizers and
templates: what is computed is what `transformers` computes of the folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chat_model_folders import CONTEXT, TOKENS, token_ids, write_chat_model
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from pipeline.errors import InputError
from stages.alignment.encoded_rankings import EncodedRanking, RankingEncoder
from stages.alignment.prompts import read_prompts
from stages.alignment.reward_evaluation import score_responses
from stages.augment import AugmentParams, select_answers
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversation, Conversations, Message
from stages.data.preference_dataset import Preferences
from stages.evaluation.model_measurements import MeasurementSettings, run_measurements
from stages.models.model_io import load_reward_model
from stages.objectives.ppo_ptx import PPOObjective
from stages.objectives.reward_modeling import RewardObjective
from stages.ppo import PPOParams, prompt_encoder
from stages.reward import RewardParams
from stages.speaker.question_generation import QuestionGenerationConfig, QuestionGenerator
from stages.training.ranks.rank import Rank

GIVEN = {"llama": None, "qwen3": None, "qwen3_moe": None, "gpt2": "chatml"}
"""The template that a stage names, by family; GPT-2 has none of its own."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    for family in GIVEN:
        write_chat_model(folder / family, family)
    return folder


def rows_of(messages: Any, *more: Message) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in (*messages, *more)]


def theirs_of(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    """Return the ids of `apply_chat_template`."""
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=False, **options)
    return ids


def encoded(base: Path, world: Path, template: str | None = None) -> list[list[EncodedRanking]]:
    """Rankings to train on, and those held out."""
    encoder = RankingEncoder(base, CONTEXT, template)
    return [
        [found for one in encoder.records(world / "preferences", split)
         if (found := encoder.ranking(one, Counter()))]
        for split in ("train", "eval")
    ]  # fmt: skip


def reward_model(base: Path, world: Path, out: Path, template: str | None = None) -> Path:
    """A reward model of a folder, after its training has begun."""
    made = RewardObjective(base, *encoded(base, world, template), 0.0, 20, template)
    torch.manual_seed(0)
    model: Any = made.setup(Rank(), RewardParams().train, seed=0)["model"].module
    made.export({"model": SimpleNamespace(module=model)}, out)  # type: ignore[dict-item]
    return out


@pytest.fixture(scope="module")
def scorers(world: Path, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers")
    for family, template in GIVEN.items():
        reward_model(folders / family, world, folder / family, template)
    return folder


@pytest.mark.parametrize("family", GIVEN)
def test_scores_are_those_of_a_classifier_with_its_own_template(
    family: str, world: Path, scorers: Path
) -> None:
    folder = scorers / family
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ours = load_reward_model(folder)
    rankings = encoded(folder, world)[1][:6]
    made = RewardObjective(folder, rankings)
    scores = score_responses(ours, made.collate(rankings)).tolist()
    shift = theirs.config.score_bias if hasattr(theirs.config, "score_bias") else 0.0
    texts: list[list[int]] = []
    for preference, row in zip(Preferences(world / "preferences", "eval"), scores, strict=False):
        for response, score in zip(preference.responses, row, strict=True):
            said = rows_of(preference.prompt, Message("assistant", response))
            texts.append(theirs_of(tokenizer, said))
            with torch.no_grad():
                found = theirs(torch.tensor([texts[-1]])).logits[0, 0] + shift
            assert float(found) == pytest.approx(score, abs=1e-5)
    if tokenizer.pad_token is not None:  # as a batch of its own tokenizer
        batch = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
        with torch.no_grad():
            found = theirs(**batch).logits[:, 0] + shift
        together = [score for row in scores for score in row]
        torch.testing.assert_close(found, torch.tensor(together), rtol=0, atol=1e-5)


def test_a_padding_token_is_found_unless_every_other_one_ends_a_text(scorers: Path) -> None:
    """A classifier that takes its end token for padding would read before it."""
    for family, expected in (("llama", "<|finetune_right_pad_id|>"), ("qwen3", "<|endoftext|>")):
        tokenizer = AutoTokenizer.from_pretrained(scorers / family)
        assert tokenizer.pad_token == expected and tokenizer.padding_side == "right"
        config = AutoModelForSequenceClassification.from_pretrained(scorers / family).config
        assert config.pad_token_id == tokenizer.pad_token_id
    assert AutoTokenizer.from_pretrained(scorers / "gpt2").pad_token is None


def test_a_reward_model_of_a_model_without_a_template_needs_one(world: Path, folders: Path) -> None:
    encoder = RankingEncoder(folders / "gpt2", CONTEXT)
    with pytest.raises(InputError, match="the model has no chat template"):
        _ = encoder.identity


def prompts(policy: Path, scorer: Path, world: Path) -> list[list[list[int]]]:
    """Prompts to train on, and those held out."""
    limit = prompt_encoder(policy, scorer, 24).limit
    return [
        read_prompts(world / "conversations", split, policy, limit) for split in ("train", "eval")
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_rollouts_stop_at_any_end_and_are_scored_at_the_templates(
    family: str, world: Path, folders: Path, scorers: Path
) -> None:
    """The same scores by the classifier, which reads the whole dialogue."""
    params = PPOParams(
        max_new_tokens=24, train={"global_batch_size": 16}, temperature=1.0, ratio_tolerance=0.5
    )  # type: ignore[arg-type]
    folder = folders / family
    made = PPOObjective(
        folder, scorers / family, *prompts(folder, scorers / family, world), (), params.settings()
    )
    modules = {name: one.module for name, one in made.setup(Rank(), params.train, 5).items()}
    chat = ChatFormat.open(folder)
    assert set(chat.end_ids) == set(token_ids(folder, TOKENS[family].ends))
    policy: Any = modules["policy"]
    with torch.no_grad():  # an end every few tokens, each as likely as the others
        policy.lm_head.weight.mul_(0.1)
    engines: Any = {name: _Engine(module) for name, module in modules.items()}
    batch = made._generate_rollouts(engines, made.prompts, range(16), 3, lambda: None)
    tokenizer = AutoTokenizer.from_pretrained(scorers / family)
    theirs = AutoModelForSequenceClassification.from_pretrained(scorers / family).eval()
    shift = getattr(theirs.config, "score_bias", 0.0)
    closing = theirs_of(tokenizer, rows_of([Message("user", "a"), Message("assistant", "b")]))
    last = max(i for i, token in enumerate(closing) if token == chat.end_id)
    for row in range(16):
        prompt = made.prompts[row]
        count = int(batch.mask[row].sum())
        response = batch.tokens[row, len(prompt) : len(prompt) + count].tolist()
        assert not set(response[:-1]) & set(chat.end_ids)
        assert bool(batch.finished[row]) == (response[-1] in chat.end_ids)
        whole = [*prompt, *response[:-1], chat.end_id, *closing[last + 1 :]]
        with torch.no_grad():
            found = theirs(torch.tensor([whole])).logits[0, 0] + shift
        assert float(batch.scores[row]) == pytest.approx(float(found), abs=1e-5)
    assert batch.finished.any()


class _Engine:
    """An engine whose module alone is used."""

    zero_stage = 0

    def __init__(self, module: Any) -> None:
        self.module = module

    def eval(self) -> None:
        self.module.eval()

    def train(self) -> None:
        self.module.train()

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.module(*args, **named)


def test_a_policy_and_a_reward_model_of_other_templates_do_not_go_together(
    world: Path, folders: Path, tmp_path: Path
) -> None:
    other = reward_model(folders / "llama", world, tmp_path / "plain", "plain")
    params = PPOParams(max_new_tokens=8)
    made = PPOObjective(folders / "llama", other, [], [], (), params.settings())
    with pytest.raises(InputError, match="template"):
        made.setup(Rank(), params.train, 0)


SETTINGS = MeasurementSettings(0, 0, 6, 6, num_prompts=6, max_new_tokens=8, temperature=1.0)


def test_the_loss_of_answers_is_that_of_transformers(world: Path, folders: Path) -> None:
    """Over the answer and its end token, as the template renders the conversation."""
    folder = folders / "llama"
    paths = {"sft": folder, "conversations": world / "conversations"}
    found = run_measurements(Rank(), ["answers"], paths, SETTINGS)["answers"].metrics
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, tokens = 0.0, 0
    for conversation in list(Conversations(world / "conversations", "eval"))[:6]:
        said = rows_of(conversation.messages)
        prompt = theirs_of(tokenizer, said[:-1], add_generation_prompt=True)
        whole = torch.tensor([theirs_of(tokenizer, said)])
        with torch.no_grad():
            logits = model(whole).logits[0, len(prompt) - 1 : -1]
        nats += float(F.cross_entropy(logits, whole[0, len(prompt) :], reduction="sum"))
        tokens += whole.shape[1] - len(prompt)
    assert found["answer_loss"] == pytest.approx(nats / tokens, abs=1e-5)


def test_all_measurements_take_such_models(world: Path, folders: Path, scorers: Path) -> None:
    paths = {
        **dict.fromkeys(("sft", "augmented", "policy"), folders / "qwen3"),
        "reward": scorers / "qwen3",
        **{name: world / name for name in ("conversations", "preferences")},
    }
    names = ["answers", "preferences", "policy"]
    results = run_measurements(Rank(), names, paths, SETTINGS)
    metrics = {key: value for name in names for key, value in results[name].metrics.items()}
    assert metrics["augmentation_gain"] == 0 and 0 <= metrics["reward_accuracy"] <= 1
    assert metrics["reward_before"] == metrics["reward_after"]
    assert metrics["kl"] == pytest.approx(0, abs=1e-4)
    other = {**paths, "augmented": folders / "llama"}
    with pytest.raises(InputError, match="the tokenizers differ"):
        run_measurements(Rank(), ["answers"], other, SETTINGS)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_questions_of_such_a_speaker_are_likely_as_transformers_finds(
    family: str, world: Path, folders: Path
) -> None:
    folder = folders / family
    config = QuestionGenerationConfig(folder, folder, 2, 12, 0.8, 0.95, seed=1)
    answers = select_answers(world / "conversations", [], [], AugmentParams())[:4]
    found = QuestionGenerator(config, Rank().device).generate(answers, first=0)
    assert len(found) == 8 and all(c.round_trip_gain is not None for c in found)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    greedy = next(c for c in found if c.index == 0)
    answer = next(a for a in answers if a.id == greedy.target)
    ids = theirs_of(tokenizer, rows_of([Message("user", answer.text)]), add_generation_prompt=True)
    ends = list(token_ids(folder, TOKENS[family].ends))
    settings = GenerationConfig(
        max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
    )
    drawn = model.generate(
        torch.tensor([ids]), generation_config=settings, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    response = drawn.sequences[0, len(ids) :]
    log_probs = torch.cat(drawn.logits).log_softmax(-1).gather(1, response[:, None])
    assert greedy.num_tokens == len(response)
    assert greedy.log_prob == pytest.approx(float(log_probs.mean()), abs=1e-4)
    controls = set(tokenizer.all_special_ids) | set(token_ids(folder, TOKENS[family].names))
    first = next((at for at, i in enumerate(response.tolist()) if i in controls), None)
    assert tokenizer.decode(response[:first]).strip() == greedy.text


def test_a_conversation_of_several_turns_has_the_ids_of_transformers(folders: Path) -> None:
    turns = [Message("system", "be brief"), Message("user", "what does the cat do?")]
    turns += [Message("assistant", "the cat runs"), Message("user", "and <|eot_id|> the owl?")]
    said = Conversation("a", (*turns, Message("assistant", "the owl sleeps here")))
    plain = Conversation("b", (*turns[:3], *said.messages[4:]))
    for family in ("llama", "qwen3", "qwen3_moe"):
        chat = ChatFormat.open(folders / family)
        tokenizer = AutoTokenizer.from_pretrained(folders / family)
        ids = chat.encode(plain.messages).ids.tolist()
        assert ids == theirs_of(tokenizer, rows_of(plain.messages))
        spelled = chat.encode(said.messages).ids.tolist()
        assert sum(i == chat.end_id for i in spelled) == 5, "a message ends no turn"
