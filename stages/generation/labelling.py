"""A speaker asks: questions for answers that have none, in shards that survive a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.chat import encode_prompt
from stages.data.conversations import Message
from stages.data.tokenizer import EOS, PAD, UNK, Tokenizer
from stages.generation.likelihood import Likelihood, likelihoods
from stages.generation.sampling import Decoding, sample
from stages.models.gpt import GPT
from stages.models.huggingface import load_gpt

if TYPE_CHECKING:
    import torch

    from stages.training.rank import Rank

SHARD = 32  # targets: a few seconds of work, and one file


@dataclass(frozen=True)
class Target:
    """An answer that wants a question."""

    id: str
    text: str

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the text's sha256."""
        return sha256(self.text.encode()).hexdigest()[:16]


@dataclass
class Candidate:
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
    target's."""
    verdict: str = ""
    """The rule that dropped it, or "kept"."""


@dataclass(frozen=True)
class Labelling:
    """How questions are made."""

    speaker: Path
    forward: Path | None
    candidates: int
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def decoding(self, greedy: bool) -> Decoding:
        """The greedy question of a target, or the others. <unk> is never said."""
        if greedy:
            return Decoding(self.max_new_tokens, 0.0, banned=(UNK,))
        return Decoding(self.max_new_tokens, self.temperature, top_p=self.top_p, banned=(UNK,))


def label(rank: Rank, targets: Sequence[Target], how: Labelling, folder: Path) -> int:
    """Ask for every target; one file of candidates a shard, those that are there are kept.

    Returns:
        How many shards there are.
    """
    from pipeline.disk import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    shards = [targets[start : start + SHARD] for start in range(0, len(targets), SHARD)]
    asker: Asker | None = None
    mine = range(rank.index, len(shards), rank.world)
    for done, number in enumerate(mine):
        path = shard_file(folder, number)
        if not path.exists():
            asker = asker or Asker(how, rank.device)
            found = asker.ask(shards[number], first=number * SHARD)
            write_atomic(path, json.dumps([asdict(candidate) for candidate in found]))
        rank.beat()
        if rank.ctx:
            rank.ctx.check_cancelled()
            rank.ctx.progress((done + 1) * SHARD * rank.world, len(targets), "target")
            rank.ctx.resume_point(done + 1, len(mine))
    return len(shards)


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard's candidates are."""
    return folder / f"candidates-{number:05d}.json"


def read_candidates(folder: Path, shards: int) -> list[Candidate]:
    """The candidates of all shards, in the order of the targets."""
    return [
        Candidate(**row)
        for number in range(shards)
        for row in json.loads(shard_file(folder, number).read_text())
    ]


class Asker:
    """The speaker, and the forward model that tries to answer."""

    def __init__(self, how: Labelling, device: torch.device) -> None:
        self.how, self.device = how, device
        self.speaker, self.tokenizer = load_gpt(how.speaker).to(device), Tokenizer(how.speaker)
        self.forward = load_gpt(how.forward).to(device) if how.forward else None

    def ask(self, targets: Sequence[Target], first: int) -> list[Candidate]:
        """Candidates for some targets, the first of which is number `first` of all."""
        room = self.speaker.config.context - self.how.max_new_tokens
        prompts = [self._prompt(target.text)[-room:] for target in targets]
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
            measured = self._likelihoods(self.speaker, prompts, said)
            found.append([
                Candidate(
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
        self, forward: GPT, targets: Sequence[Target], candidates: Sequence[Candidate]
    ) -> None:
        """How much each question helps to find its answer, against that of another target."""
        half = len(candidates) // 2
        answers = [[*self.tokenizer.encode(target.text), EOS] for target in targets]
        own = [self._prompt(candidate.text) for candidate in candidates]
        others = [*own[half:], *own[:half]]
        likely, baseline = (self._fitted(forward, asked, answers) for asked in (own, others))
        for candidate, a, b in zip(candidates, likely, baseline, strict=True):
            candidate.gain = a.per_token - b.per_token

    def _fitted(
        self, model: GPT, prompts: Sequence[list[int]], answers: Sequence[list[int]]
    ) -> list[Likelihood]:
        """Likelihoods of answers, cut to what fits the context after the prompt."""
        context = model.config.context
        prompts = [prompt[: context // 2] for prompt in prompts]
        cut = [answer[: context - len(p)] for p, answer in zip(prompts, answers, strict=True)]
        return self._likelihoods(model, prompts, cut)

    def _likelihoods(self, model: GPT, prompts: Any, continuations: Any) -> list[Likelihood]:
        return likelihoods(model, prompts, continuations, pad_id=PAD, device=self.device)

    def _prompt(self, text: str) -> list[int]:
        return encode_prompt(self.tokenizer, [Message("user", text)])
