"""Mean scores of sampled responses, against one response at a time and `transformers`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pipeline.errors import InputError
from stages.alignment.sampled_scores import SampledScores, ScoringSettings
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversation, Conversations, Message
from stages.generation.sampling import SamplingParams, sample
from stages.models.model_io import load_language_model
from stages.training.ranks.rank import Rank


class Part(Rank):
    """One of two ranks, whose sums are added by the test."""

    def all_reduce_sum(self, values):
        return torch.tensor(list(values), dtype=torch.float64)


def opened(world: Path, scorer: Path, rank: Rank | None = None, **fields) -> SampledScores:
    settings = replace(ScoringSettings(scorer, 12, 9, seed=3), **fields)
    held_out, chat = (
        Conversations(world / "conversations", "eval"),
        ChatFormat.open(world / "policy"),
    )
    return SampledScores(settings, held_out, chat, 40, rank or Rank())


def test_the_mean_is_that_of_each_response_alone(world: Path, scorer: Path) -> None:
    model, chat = load_language_model(world / "policy"), ChatFormat.open(world / "policy")
    reference = AutoModelForSequenceClassification.from_pretrained(scorer).eval()
    scores, texts = [], []
    conversations = list(Conversations(world / "conversations", "eval"))[:9]
    for number, conversation in enumerate(conversations):
        drawn = sample(
            model, [chat.encode_prompt(conversation.prompt)], SamplingParams(12),
            end_ids=chat.end_ids, pad_id=chat.pad_id, seed=3, indices=[number],
        )  # fmt: skip
        texts.append(chat.response_text(drawn.ids(0, eos=True)))
        ids = chat.encode_response(conversation.prompt, texts[-1]).ids.tolist()
        scores.append(float(reference(torch.tensor([ids])).logits.detach()))
    assert len(set(texts)) > 5
    wanted = sum(scores) / len(scores)
    found = opened(world, scorer)
    assert found.conversations == conversations
    assert found.mean(model) == pytest.approx(wanted, abs=1e-5)
    assert found.mean(model) == found.mean(model)
    parts = [opened(world, scorer, Part(index, 2)).mean(model) for index in range(2)]
    assert sum(parts) == pytest.approx(wanted, abs=1e-5)
    assert abs(opened(world, scorer, seed=4).mean(model) - wanted) > 1e-4


def test_more_ranks_than_prompts_score_nothing_of_their_own(world: Path, scorer: Path) -> None:
    model = load_language_model(world / "policy")
    assert opened(world, scorer, Part(5, 6), prompts=3).mean(model) == 0


def test_prompts_without_room_for_a_response_are_not_answered(world: Path, scorer: Path) -> None:
    long = Conversation("l", (Message("user", "the owl " * 30), Message("assistant", "so")), "eval")
    short = Conversation("s", (Message("user", "why?"), Message("assistant", "so")), "eval")
    settings, chat = ScoringSettings(scorer, 12, 0, 3), ChatFormat.open(world / "policy")
    assert SampledScores(settings, [long, short], chat, 40, Rank()).conversations == [short]
    with pytest.raises(InputError, match="no held-out prompt leaves room for 12 tokens") as caught:
        SampledScores(settings, [long], chat, 40, Rank())
    assert caught.value.where == "max_new_tokens"


def test_prompts_that_the_template_refuses_are_not_answered(world: Path, scorer: Path) -> None:
    plain = (Message("user", "why?"), Message("assistant", "so"))
    odd = Conversation("o", (Message("critic", "hm"), *plain), "eval")
    asked = Conversation("a", plain, "eval")
    settings, chat = ScoringSettings(scorer, 12, 0, 3), ChatFormat.open(world / "policy")
    assert SampledScores(settings, [odd, asked], chat, 40, Rank()).conversations == [asked]
