"""Generates questions for unlabelled answers with a speaker model, shard by shard, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message
from stages.distributed.cancellation_point import CancellationPoint
from stages.distributed.commit_seals import is_intact, write_seal
from stages.generation.likelihood import Likelihood, likelihoods
from stages.generation.sampling import SamplingParams, sample
from stages.models.language_model import LanguageModel
from stages.models.model_io import load_language_model

if TYPE_CHECKING:
    import torch

    from stages.training.ranks.rank import Rank

ANSWERS_PER_SHARD = 32  # a few seconds of work


@dataclass(frozen=True)
class UnlabelledAnswer:
    """An answer without a question."""

    id: str
    text: str

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the text's SHA-256."""
        return sha256(self.text.encode()).hexdigest()[:16]


@dataclass
class CandidateQuestion:
    """A generated question for an answer."""

    target: str
    """Id of the answer."""
    index: int
    """Number of the question among those of its answer; 0 is the greedy one."""
    text: str
    num_tokens: int
    finished: bool
    """False if the length limit was reached."""
    log_prob: float
    """Log-probability per token under the speaker, nats, at temperature 1."""
    round_trip_gain: float | None = None
    """Gain of the forward model's log-probability per token of the answer over that with another
    answer's question, nats; None without a forward model or another answer."""
    outcome: str = ""
    """Name of the filter that dropped it, or "kept"."""


@dataclass(frozen=True)
class QuestionGenerationConfig:
    """Models and sampling options."""

    speaker: Path
    forward: Path | None
    num_candidates: int
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def sampling_params(self, greedy: bool, suppressed: tuple[int, ...]) -> SamplingParams:
        """Return the options of the greedy question of an answer, or of the others; `suppressed`
        tokens are never sampled."""
        if greedy:
            return SamplingParams(self.max_new_tokens, 0.0, suppress_tokens=suppressed)
        return SamplingParams(
            self.max_new_tokens, self.temperature, top_p=self.top_p, suppress_tokens=suppressed
        )


def generate_questions(
    rank: Rank,
    answers: Sequence[UnlabelledAnswer],
    config: QuestionGenerationConfig,
    folder: Path,
    cancel_file: Path | None = None,
) -> int:
    """Generate the candidates of this rank's shards, one file per shard; intact files are kept.

    Returns:
        The number of shards.

    Raises:
        Interrupted: cancellation was requested; finished shards remain.
    """
    from pipeline.atomic_io import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    shards = shard_answers(answers)
    check_cancelled = CancellationPoint(rank, cancel_file)
    generator: QuestionGenerator | None = None
    own = range(rank.index, len(shards), rank.world)
    for done, number in enumerate(own):
        path = shard_file(folder, number)
        if not is_intact(path):
            generator = generator or QuestionGenerator(config, rank.device, check_cancelled)
            found = generator.generate(shards[number], first=number * ANSWERS_PER_SHARD)
            write_atomic(path, json.dumps([asdict(candidate) for candidate in found]))
            write_seal(path)
        check_cancelled()
        if rank.ctx:
            finished = min(len(answers), (done + 1) * ANSWERS_PER_SHARD * rank.world)
            rank.ctx.progress(finished, len(answers), "answers")
            rank.ctx.resume_point(done + 1, len(own))
    return len(shards)


def shard_answers(answers: Sequence[UnlabelledAnswer]) -> list[Sequence[UnlabelledAnswer]]:
    """Split answers into shards of at least two, because a round trip compares with the question of
    another answer; a single answer is one shard."""
    starts = list(range(0, len(answers), ANSWERS_PER_SHARD))
    if len(answers) % ANSWERS_PER_SHARD == 1 and len(starts) > 1:
        starts.pop()
    return [answers[a:b] for a, b in zip(starts, [*starts[1:], len(answers)], strict=True)]


def shard_file(folder: Path, number: int) -> Path:
    """Return the path of a shard's candidates."""
    return folder / f"candidates-{number:05d}.json"


def read_candidates(folder: Path, shards: int) -> list[CandidateQuestion]:
    """Read the candidates of all shards, in the order of the answers."""
    return [
        CandidateQuestion(**row)
        for number in range(shards)
        for row in json.loads(shard_file(folder, number).read_text())
    ]


class QuestionGenerator:
    """The speaker, which generates questions, and the forward model, which predicts answers."""

    def __init__(
        self,
        config: QuestionGenerationConfig,
        device: torch.device,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.device, self.heartbeat = config, device, heartbeat
        self.speaker = load_language_model(config.speaker).to(device)
        self.chat = ChatFormat.open(config.speaker)
        if config.forward:
            self.chat.require_equal(ChatFormat.open(config.forward))
        self.forward = load_language_model(config.forward).to(device) if config.forward else None
        self.max_prompt = self.speaker.config.context_length - config.max_new_tokens
        if self.max_prompt < len(self.chat.encode_prompt([Message("user", "a")])):
            raise InputError(
                f"questions of {config.max_new_tokens} tokens leave no room for an answer in a "
                f"context of {self.speaker.config.context_length}",
                where=str(config.speaker),
                remedy="lower max_new_tokens",
            )

    def generate(self, answers: Sequence[UnlabelledAnswer], first: int) -> list[CandidateQuestion]:
        """Return the candidates of some answers, the first of them number `first` of all."""
        prompts = [self._prompt(answer.text, self.max_prompt) for answer in answers]
        by_index = []
        for index in range(self.config.num_candidates):
            responses = sample(
                self.speaker,
                prompts,
                self.config.sampling_params(index == 0, self.chat.unknown_ids),
                end_ids=self.chat.end_ids,
                pad_id=self.chat.pad_id,
                seed=self.config.seed,
                indices=[
                    (first + i) * self.config.num_candidates + index for i in range(len(answers))
                ],
                device=self.device,
            )
            questions = [responses.ids(row, eos=True) for row in range(len(answers))]
            self.heartbeat()
            scores = self._likelihoods(self.speaker, prompts, questions)
            by_index.append([
                CandidateQuestion(
                    answer.id, index, self.chat.decode(ids).strip(), len(ids),
                    bool(responses.finished[row]), scores[row].per_token,
                )
                for row, (answer, ids) in enumerate(zip(answers, questions, strict=True))
            ])  # fmt: skip
        if self.forward is not None:
            for candidates in by_index:
                self._measure_round_trip(self.forward, answers, candidates)
        return [candidates[row] for row in range(len(answers)) for candidates in by_index]

    def _measure_round_trip(
        self,
        forward: LanguageModel,
        answers: Sequence[UnlabelledAnswer],
        candidates: Sequence[CandidateQuestion],
    ) -> None:
        """Set the round-trip gain of one candidate per answer, with the question of another answer
        as baseline; one answer alone has no baseline."""
        if len(candidates) < 2:
            return
        half, max_prompt = len(candidates) // 2, forward.config.context_length // 2
        encoded = [self._answer(answer.text) for answer in answers]
        own = [self._prompt(candidate.text, max_prompt) for candidate in candidates]
        others = [*own[half:], *own[:half]]
        gained, baseline = (self._truncate(forward, p, encoded) for p in (own, others))
        for candidate, a, b in zip(candidates, gained, baseline, strict=True):
            candidate.round_trip_gain = a.per_token - b.per_token

    def _truncate(
        self, model: LanguageModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]
    ) -> list[Likelihood]:
        """Return the likelihoods of answers, truncated to fit the context after the prompt."""
        room = model.config.context_length + 1
        fitting = [answer[: room - len(p)] for p, answer in zip(prompts, answers, strict=True)]
        return self._likelihoods(model, prompts, fitting)

    def _likelihoods(
        self, model: LanguageModel, prompts: Any, continuations: Any
    ) -> list[Likelihood]:
        return likelihoods(
            model, prompts, continuations, pad_id=self.chat.pad_id, device=self.device,
            heartbeat=self.heartbeat,
        )  # fmt: skip

    def _answer(self, text: str) -> list[int]:
        """Return the ids of a text as an answer, its end token included."""
        encoded = self.chat.encode_response([Message("user", "a")], text)
        ids: list[int] = encoded.ids[encoded.loss_mask].tolist()
        return ids

    def _prompt(self, text: str, max_tokens: int) -> list[int]:
        """Return the prompt of a text; a longer text is truncated, and what the template writes
        after it is kept."""
        ids = self.chat.encode_prompt([Message("user", text)])
        if len(ids) <= max_tokens:
            return ids
        kept = common_end(ids, self.chat.encode_prompt([Message("user", "")]))
        return [*ids[: max_tokens - kept], *ids[len(ids) - kept :]]


def common_end(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of ids at the end that two sequences share."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
