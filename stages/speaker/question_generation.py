"""A speaker asks: questions for answers that have none, in shards that survive a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from stages.data.conversation_dataset import Message
from stages.data.tokenizers.chat_template import encode_prompt
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, PAD, UNK, Tokenizer
from stages.distributed.cancellation_point import CancellationPoint
from stages.generation.likelihood import Likelihood, likelihoods
from stages.generation.sampling import SamplingParams, sample
from stages.models.hf_export import load_language_model
from stages.models.language_model import LanguageModel

if TYPE_CHECKING:
    import torch

    from stages.training.ranks.rank import Rank

ANSWERS_PER_SHARD = 32  # targets: a few seconds of work, and one file
CHAT_OVERHEAD = 4  # tokens: <s> <|user|> … <|assistant|> around one of text


@dataclass(frozen=True)
class UnlabelledAnswer:
    """An answer that wants a question."""

    id: str
    text: str

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the text's sha256."""
        return sha256(self.text.encode()).hexdigest()[:16]


@dataclass
class CandidateQuestion:
    """A question that the speaker proposed for a target."""

    target: str
    place: int
    """0 is the greedy one."""
    text: str
    tokens: int
    finished: bool
    log_prob: float
    """Per token, under the speaker at temperature 1, whatever it was drawn with."""
    gain: float | None = None
    """Nats per token of the answer that the forward model gains by this question over another
    target's; None where there is no forward model, or no other target."""
    verdict: str = ""
    """The rule that dropped it, or "kept"."""


@dataclass(frozen=True)
class QuestionGenerationConfig:
    """How questions are made."""

    speaker: Path
    forward: Path | None
    candidates: int
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def decoding(self, greedy: bool) -> SamplingParams:
        """The greedy question of a target, or the others. <unk> is never said."""
        if greedy:
            return SamplingParams(self.max_new_tokens, 0.0, suppress_tokens=(UNK,))
        return SamplingParams(
            self.max_new_tokens, self.temperature, top_p=self.top_p, suppress_tokens=(UNK,)
        )


def generate_questions(
    rank: Rank,
    targets: Sequence[UnlabelledAnswer],
    how: QuestionGenerationConfig,
    folder: Path,
    cancel_file: Path | None = None,
) -> int:
    """Ask for every target; one file of candidates a shard, those that are there are kept.

    Returns:
        How many shards there are.

    Raises:
        Interrupted: somebody asked the run to stop; the shards that are done stay.
    """
    from pipeline.atomic_io import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    shards = shard_answers(targets)
    pause = CancellationPoint(rank, cancel_file)
    asker: QuestionGenerator | None = None
    mine = range(rank.index, len(shards), rank.world)
    for done, number in enumerate(mine):
        path = shard_file(folder, number)
        if not path.exists():
            asker = asker or QuestionGenerator(how, rank.device, pause)
            found = asker.ask(shards[number], first=number * ANSWERS_PER_SHARD)
            write_atomic(path, json.dumps([asdict(candidate) for candidate in found]))
        pause()
        if rank.ctx:
            labelled = min(len(targets), (done + 1) * ANSWERS_PER_SHARD * rank.world)
            rank.ctx.progress(labelled, len(targets), "target")
            rank.ctx.resume_point(done + 1, len(mine))
    return len(shards)


def shard_answers(targets: Sequence[UnlabelledAnswer]) -> list[Sequence[UnlabelledAnswer]]:
    """Targets in shards, none of which is one target among others: its question could be weighed
    against no other's."""
    starts = list(range(0, len(targets), ANSWERS_PER_SHARD))
    if len(targets) % ANSWERS_PER_SHARD == 1 and len(starts) > 1:
        starts.pop()
    return [targets[a:b] for a, b in zip(starts, [*starts[1:], len(targets)], strict=True)]


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard's candidates are."""
    return folder / f"candidates-{number:05d}.json"


def read_candidates(folder: Path, shards: int) -> list[CandidateQuestion]:
    """The candidates of all shards, in the order of the targets."""
    return [
        CandidateQuestion(**row)
        for number in range(shards)
        for row in json.loads(shard_file(folder, number).read_text())
    ]


class QuestionGenerator:
    """The speaker, and the forward model that tries to answer."""

    def __init__(
        self,
        how: QuestionGenerationConfig,
        device: torch.device,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.how, self.device, self.heartbeat = how, device, heartbeat
        self.speaker, self.tokenizer = (
            load_language_model(how.speaker).to(device),
            Tokenizer(how.speaker),
        )
        self.forward = load_language_model(how.forward).to(device) if how.forward else None
        self.room = self.speaker.config.context_length - how.max_new_tokens
        if self.room < CHAT_OVERHEAD:
            raise InputError(
                f"questions of {how.max_new_tokens} tokens leave no room for an answer in a "
                f"context of {self.speaker.config.context_length}",
                where=str(how.speaker),
                remedy="lower max_new_tokens",
            )

    def ask(self, targets: Sequence[UnlabelledAnswer], first: int) -> list[CandidateQuestion]:
        """Candidates for some targets, the first of which is number `first` of all."""
        prompts = [self._prompt(target.text, self.room) for target in targets]
        found = []
        for place in range(self.how.candidates):
            drawn = sample(
                self.speaker,
                prompts,
                self.how.decoding(greedy=place == 0),
                eos_id=EOS,
                pad_id=PAD,
                seed=self.how.seed,
                indices=[(first + i) * self.how.candidates + place for i in range(len(targets))],
                device=self.device,
            )
            said = [drawn.ids(row, eos=True) for row in range(len(targets))]
            self.heartbeat()
            measured = self._likelihoods(self.speaker, prompts, said)
            found.append([
                CandidateQuestion(
                    target.id, place, self.tokenizer.decode(ids).strip(), len(ids),
                    bool(drawn.finished[row]), measured[row].per_token,
                )
                for row, (target, ids) in enumerate(zip(targets, said, strict=True))
            ])  # fmt: skip
        if self.forward is not None:
            for of_place in found:
                self._round_trip(self.forward, targets, of_place)
        return [of_place[row] for row in range(len(targets)) for of_place in found]

    def _round_trip(
        self,
        forward: LanguageModel,
        targets: Sequence[UnlabelledAnswer],
        candidates: Sequence[CandidateQuestion],
    ) -> None:
        """How much each question helps to find its answer, against that of another target; nothing
        is known of a lone one."""
        if len(candidates) < 2:
            return
        half, room = len(candidates) // 2, forward.config.context_length // 2
        answers = [[*self.tokenizer.encode(target.text), EOS] for target in targets]
        own = [self._prompt(candidate.text, room) for candidate in candidates]
        others = [*own[half:], *own[:half]]
        likely, baseline = (self._fitted(forward, asked, answers) for asked in (own, others))
        for candidate, a, b in zip(candidates, likely, baseline, strict=True):
            candidate.gain = a.per_token - b.per_token

    def _fitted(
        self, model: LanguageModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]
    ) -> list[Likelihood]:
        """Likelihoods of answers, cut to what fits the context after the prompt."""
        room = model.config.context_length + 1
        fitted = [answer[: room - len(p)] for p, answer in zip(prompts, answers, strict=True)]
        return self._likelihoods(model, prompts, fitted)

    def _likelihoods(
        self, model: LanguageModel, prompts: Any, continuations: Any
    ) -> list[Likelihood]:
        return likelihoods(
            model, prompts, continuations, pad_id=PAD, device=self.device, heartbeat=self.heartbeat
        )

    def _prompt(self, text: str, room: int) -> list[int]:
        """The prompt of a text. If it is longer than `room`, the text is cut, not its frame."""
        ids = encode_prompt(self.tokenizer, [Message("user", text)])
        return ids if len(ids) <= room else [*ids[: room - 1], ids[-1]]
