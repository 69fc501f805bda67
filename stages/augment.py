"""augment: a speaker asks the questions that nobody asked, and good ones join the real ones.

    augment:
      uses: augment
      speaker: ${speaker}               # p(question | answer): `sft` with `reverse: true`
      targets: ${questions}             # its `unlabelled` split: answers without a question
      real: ${questions}                # optional; by default the conversations of `targets`
      forward: ${sft}                   # optional: p(answer | question), for the round trip;
                                        # best trained on data that the speaker has not seen

Only the question is synthetic: the answer, which is what is learned, stays real. Out come the
real conversations, held-out ones too, and the kept synthetic ones in `train`, with their
provenance in `meta`; what was not kept is in rejected/ with its verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline import panels
from pipeline.context import Context
from pipeline.errors import InputError, Problem
from pipeline.stage import Inputs, Params, Section, stage

if TYPE_CHECKING:
    from stages.data.conversation_dataset import Conversation
    from stages.speaker.question_filters import QuestionFilter
    from stages.speaker.question_generation import (
        CandidateQuestion,
        QuestionGenerationConfig,
        UnlabelledAnswer,
    )

SHOWN = 12


class Filters(Section):
    """When a question is not kept."""

    min_words: Annotated[int, Field(ge=1)] = 3
    """Words of a question, at least."""
    max_words: Annotated[int, Field(ge=1)] = 40
    """Words of a question, at most."""
    repetition: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Largest share of word pairs that repeat earlier ones."""
    log_prob_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share that the speaker itself finds least likely."""
    round_trip: float = 0.0
    """Nats per answer token that the question must gain over another target's question."""


class AugmentParams(Params):
    """What a pipeline file may say of the stage."""

    seed: int = 0
    """Of the draws; the pipeline's, if left out."""
    candidates: Annotated[int, Field(ge=1)] = 4
    """Questions a target: one greedy, the others sampled. At most one of them is kept."""
    temperature: Annotated[float, Field(gt=0)] = 0.8
    """Of the sampled questions."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The sampled questions are drawn from the likeliest tokens of this probability."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 40
    """Longest question, in tokens."""
    max_targets: Annotated[int, Field(ge=0)] = 0
    """Targets that are labelled; 0 takes all."""
    ratio: Annotated[float, Field(ge=0)] = 1.0
    """Most synthetic conversations for each real one."""
    filters: Filters = Filters()

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """The bounds are in order, and a question fits the speaker's context."""
        if self.filters.min_words > self.filters.max_words:
            yield Problem(
                "filters.min_words",
                f"{self.filters.min_words} is more than max_words ({self.filters.max_words})",
            )
        context = getattr(getattr(upstream.get("speaker"), "model", None), "context_length", None)
        if context and self.max_new_tokens >= context:
            yield Problem(
                "max_new_tokens",
                f"{self.max_new_tokens} leaves no room for an answer in a context of {context}",
                f"lower it below {context}",
            )


@stage(
    "augment",
    inputs={
        "speaker": "Model",
        "targets": "Conversations",
        "real": "Conversations?",
        "forward": "Model?",
    },
    output="Conversations",
    version=2,
)
def augment(params: AugmentParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Label answers with generated questions, keep the good ones, mix them with the real."""
    from stages.data.conversation_dataset import Conversations, write_conversations
    from stages.speaker.question_filters import apply_filters
    from stages.speaker.question_generation import (
        QuestionGenerationConfig,
        generate_questions,
        read_candidates,
    )
    from stages.training.ranks.worker_group import WorkerGroup

    real_path = inputs.get_path("real") or inputs.path("targets")
    real, held_out = Conversations(real_path), Conversations(real_path, "eval")
    targets = choose_targets(inputs.path("targets"), [*real, *held_out], held_out, params)
    how = QuestionGenerationConfig(
        inputs.path("speaker"), inputs.get_path("forward"), params.candidates,
        params.max_new_tokens, params.temperature, params.top_p, params.seed,
    )  # fmt: skip
    with WorkerGroup(params.workers, ctx) as group:
        shards = group.run(generate_questions, targets, how, ctx.scratch, ctx.cancel_file)[0]
    candidates = read_candidates(ctx.scratch, shards)
    counts = apply_filters(rules(params, real, held_out), candidates)
    texts = {target.id: target for target in targets}
    made = [
        (candidate, converse(candidate, texts[candidate.target], how, inputs))
        for candidate in candidates
    ]
    kept = [conversation for candidate, conversation in made if candidate.verdict == "kept"]
    write_conversations(out, [*real, *held_out, *kept])
    write_conversations(out / "rejected", [c for k, c in made if k.verdict != "kept"])
    ctx.result(
        targets=len(targets), candidates=len(candidates), real=len(real), synthetic=len(kept),
        kept_share=len(kept) / max(1, len(candidates)),
    )  # fmt: skip
    show(ctx, candidates, counts, texts)


def choose_targets(
    path: Path,
    known: Sequence[Conversation],
    held_out: Sequence[Conversation],
    params: AugmentParams,
) -> list[UnlabelledAnswer]:
    """The answers that have no question; an answer that is known already is left out.

    Raises:
        InputError: none is left, or one is of an object that evaluation holds out.
    """
    from stages.data.conversation_dataset import Conversations
    from stages.speaker.question_filters import normalize_question
    from stages.speaker.question_generation import UnlabelledAnswer

    unlabelled = Conversations(path, "unlabelled")
    reserved = {key for conversation in held_out for key in objects(conversation)}
    overlap = [c.id for c in unlabelled if reserved & objects(c)]
    if overlap:
        raise InputError(
            f"{len(overlap)} targets are objects of the evaluation split: {', '.join(overlap[:3])}",
            where=str(path),
            remedy="split the conversations by object, so that evaluation stays unseen",
        )
    texts = {normalize_question(conversation.response) for conversation in known}
    found = []
    for conversation in unlabelled:
        text = normalize_question(conversation.response)
        if text and text not in texts:
            texts.add(text)
            found.append(UnlabelledAnswer(conversation.id, conversation.response))
    if not found:
        raise InputError(
            "no target: no answer of the split `unlabelled` is new",
            where=str(path),
            remedy="keep a share of the answers without questions",
        )
    return found[: params.max_targets or len(found)]


def objects(conversation: Conversation) -> set[str]:
    """What a conversation is about, as far as its id and its `meta.object` say."""
    named = conversation.meta.get("object")
    return {conversation.id} | ({str(named)} if named else set())


def rules(
    params: AugmentParams, real: Sequence[Conversation], held_out: Sequence[Conversation]
) -> list[tuple[str, QuestionFilter]]:
    """The chain of rules, by name."""
    from stages.speaker import question_filters

    own = params.filters

    def questions(conversations: Sequence[Conversation]) -> list[str]:
        return [c.prompt[-1].content for c in conversations if c.prompt]

    return [
        ("unfinished", question_filters.truncated),
        ("length", question_filters.length_out_of_range(own.min_words, own.max_words)),
        ("repetition", question_filters.repetitive(own.repetition)),
        ("held out", question_filters.matches_known(questions(held_out))),
        ("already asked", question_filters.matches_known(questions(real))),
        ("ambiguous", question_filters.ambiguous),
        ("unlikely", question_filters.low_log_prob(own.log_prob_quantile)),
        ("round trip", question_filters.fails_round_trip(own.round_trip)),
        ("not the best", question_filters.not_best_candidate),
        ("beyond the ratio", question_filters.exceeds_quota(int(params.ratio * len(real)))),
    ]


def converse(
    candidate: CandidateQuestion,
    target: UnlabelledAnswer,
    how: QuestionGenerationConfig,
    inputs: Inputs,
) -> Conversation:
    """A candidate as a conversation that says where it comes from."""
    from stages.data.conversation_dataset import Conversation, Message

    def fingerprint(edge: str) -> str | None:
        return getattr(inputs[edge], "fingerprint", None) if edge in inputs else None

    greedy = candidate.place == 0
    decoding: dict[str, Any] = {"temperature": 0.0 if greedy else how.temperature}
    if not greedy:
        decoding["top_p"] = how.top_p
    return Conversation(
        f"{target.id}/question-{candidate.place}",
        (Message("user", candidate.text or "?"), Message("assistant", target.text)),
        "train",
        {
            "synthetic": True,
            "target": target.id,
            "target_sha256": target.digest,
            "speaker": fingerprint("speaker"),
            "forward": fingerprint("forward"),
            "decoding": decoding,
            "seed": how.seed,
            "candidate": candidate.place,
            "log_prob": round(candidate.log_prob, 6),
            "round_trip": None if candidate.gain is None else round(candidate.gain, 6),
            "verdict": candidate.verdict,
        },
    )


def show(
    ctx: Context,
    candidates: Sequence[CandidateQuestion],
    counts: Sequence[tuple[str, int]],
    texts: Mapping[str, UnlabelledAnswer],
) -> None:
    """What people look at: what each rule took, and questions of every verdict."""
    kept = sum(candidate.verdict == "kept" for candidate in candidates)
    steps = [("asked", len(candidates)), *((name, -count) for name, count in counts)]
    ctx.panel(panels.waterfall("Questions kept", "questions", [*steps, ("kept", kept)]))
    good = [candidate for candidate in candidates if candidate.verdict == "kept"]
    bad = [
        candidate for candidate in candidates if candidate.verdict not in ("kept", "not the best")
    ]
    ctx.panel(panels.samples("Questions that were kept", cards(good[:SHOWN], texts)))
    ctx.panel(panels.samples("Questions that were dropped", cards(bad[:SHOWN], texts)))


def cards(
    candidates: Sequence[CandidateQuestion], texts: Mapping[str, UnlabelledAnswer]
) -> list[dict[str, str]]:
    """Each candidate with its answer, scores and verdict."""
    return [
        {
            "answer": texts[c.target].text[:400],
            "question": c.text,
            "scores": f"log p {c.log_prob:.2f}"
            + ("" if c.gain is None else f", round trip {c.gain:+.2f}"),
            "verdict": c.verdict,
        }
        for c in candidates
    ]
