"""The mean score that a reward model gives sampled responses to held-out prompts.

Prompts and random numbers are the same at each call and on any number of ranks, so that two
evaluations of a training compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, Interrupted
from stages.alignment.reward_evaluation import mean_score
from stages.chat.chat_format import ChatFormat
from stages.generation.sampling import SamplingParams, length_sorted_batches, sample
from stages.models.model_io import load_reward_model

if TYPE_CHECKING:
    from stages.data.conversation_dataset import Conversation
    from stages.models.language_model import LanguageModel
    from stages.models.reward_head import RewardModel
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank

BATCH = 64
"""Responses that are sampled at once."""


@dataclass(frozen=True)
class ScoringSettings:
    """The responses that are sampled, and their scorer."""

    scorer: Path
    """Folder of the reward model."""
    max_new_tokens: int
    """Longest response, tokens."""
    prompts: int
    """Most prompts that are answered; 0 is all."""
    seed: int


class SampledScores:
    """Held-out prompts with the reward model that scores responses to them.

    Raises:
        InputError: no prompt leaves room for a response.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        conversations: Iterable[Conversation],
        chat: ChatFormat,
        context: int,
        rank: Rank,
    ) -> None:
        self.settings, self.chat, self.rank = settings, chat, rank
        self.scorer: RewardModel = load_reward_model(settings.scorer).to(rank.device)
        self.scorer.requires_grad_(False)
        self._scored = ChatFormat.open(settings.scorer)
        self._limit = self.scorer.body.config.context_length
        fitting = (c for c in conversations if self._fits(c, context))
        self.conversations = list(islice(fitting, settings.prompts or None))
        if not self.conversations:
            raise InputError(
                f"no held-out prompt leaves room for {settings.max_new_tokens} tokens",
                where="max_new_tokens",
                remedy="lower it, or hold out conversations with shorter prompts",
            )

    def _fits(self, conversation: Conversation, context: int) -> bool:
        """Return whether prompt and response fit the contexts and chat templates of both models."""
        prompt, tools = conversation.prompt, conversation.tools
        room = self.settings.max_new_tokens
        try:
            asked, scored = (
                self.chat.encode_prompt(prompt, tools),
                self._scored.encode_prompt(prompt),
            )
        except InputError:
            return False
        return len(asked) + room <= context and len(scored) + room <= self._limit

    def mean(self, model: LanguageModel) -> float:
        """Return the mean score of one response to each prompt, the same on every rank.

        Raises:
            Interrupted: the run is to stop.
        """
        mine = range(self.rank.index, len(self.conversations), self.rank.world)
        rows = [self._scored_row(number, text) for number, text in self._responses(model, mine)]
        own = 0.0
        if rows:
            beat, device = self.rank.heartbeat, self.rank.device
            own = mean_score(self.scorer, rows, device, heartbeat=beat) * len(rows)
        total = float(self.rank.all_reduce_sum([own])[0])
        if self.rank.stop_requested():
            raise Interrupted("stopped while evaluating", where=self.rank.stage)
        return total / len(self.conversations)

    def _responses(self, model: LanguageModel, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Yield the number of each prompt with the text of its response."""
        chosen = [self.conversations[number] for number in numbers]
        prompts = [self.chat.encode_prompt(c.prompt, c.tools) for c in chosen]
        for places in length_sorted_batches(prompts, BATCH):
            drawn = sample(
                model,
                [prompts[place] for place in places],
                SamplingParams(self.settings.max_new_tokens),
                end_ids=self.chat.end_ids,
                pad_id=self.chat.pad_id,
                seed=self.settings.seed,
                indices=[numbers[place] for place in places],
                device=self.rank.device,
            )
            self.rank.heartbeat()
            for row, place in enumerate(places):
                yield numbers[place], self.chat.response_text(drawn.ids(row, eos=True))

    def _scored_row(self, number: int, text: str) -> list[int]:
        """Return a prompt with a response as the reward model reads it; a response that has more
        tokens there is cut to its context."""
        prompt = self.conversations[number].prompt
        ids: list[int] = self._scored.encode_response(prompt, text).ids.tolist()
        while len(ids) > self._limit and text:
            text = text[: len(text) * self._limit // (len(ids) + 1)]
            ids = self._scored.encode_response(prompt, text).ids.tolist()
        return ids


@contextmanager
def plain_model(
    engine: Engine, build: Callable[[], LanguageModel], rank: Rank
) -> Iterator[LanguageModel]:
    """Yield the model of an engine for sampling, in evaluation mode. Sharded weights are copied
    into another model, because hooks that gather them would do so at every token.

    Args:
        engine: of the model.
        build: returns a model of the same parameters.
        rank: this process.
    """
    model: Any = engine.module
    if engine.zero_stage == 3:
        dtype = next(model.parameters()).dtype
        model = build().to(rank.device, dtype)
        with engine.gathered_weights() as whole:
            model.load_state_dict(whole.state_dict())
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)
