"""The augment stage without its processes: targets, shards, the chain of rules, provenance."""

import json
from types import SimpleNamespace

import pytest

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from stages.augment import (
    AugmentParams,
    add_panels,
    object_ids,
    question_filter_chain,
    select_answers,
    to_conversation,
)
from stages.data.conversation_dataset import (
    Conversation,
    Conversations,
    Message,
    write_conversations,
)
from stages.data.tokenizers.sentencepiece_tokenizer import ASSISTANT, BOS, USER, Tokenizer
from stages.speaker import question_filters
from stages.speaker.question_generation import (
    ANSWERS_PER_SHARD,
    CandidateQuestion,
    QuestionGenerationConfig,
    QuestionGenerator,
    UnlabelledAnswer,
    generate_questions,
    read_candidates,
    shard_answers,
    shard_file,
)
from stages.training.ranks.rank import Rank


def candidate(text="what does it do?", target="t", **options):
    values = {"index": 0, "num_tokens": 5, "finished": True, "log_prob": -1.0} | options
    return CandidateQuestion(target, text=text, **values)


def talk(key, answer, split, question=None, **meta):
    turns = (Message("user", question),) if question else ()
    return Conversation(key, (*turns, Message("assistant", answer)), split, meta)


@pytest.fixture
def config(world):
    return QuestionGenerationConfig(world / "speaker", world / "policy", 3, 12, 0.8, 0.95, seed=1)


@pytest.fixture
def targets(world):
    found = select_answers(world / "conversations", [], [], AugmentParams())
    assert len(found) > ANSWERS_PER_SHARD
    return found


def test_questions_are_a_function_of_seed_and_target(config, targets, tmp_path):
    generate_questions(Rank(), targets, config, tmp_path / "one")
    for index in range(2):
        shards = generate_questions(Rank(index=index, world=2), targets, config, tmp_path / "two")
    assert shards == 2
    one, two = (read_candidates(tmp_path / name, shards) for name in ("one", "two"))
    assert one == two
    assert len(one) == 3 * len(targets)
    assert [c.index for c in one[:4]] == [0, 1, 2, 0]
    assert [c.target for c in one[::3]] == [target.id for target in targets]
    assert all(c.round_trip_gain is not None and c.log_prob < 0 for c in one)


def test_a_finished_shard_is_not_generated_again(config, targets, tmp_path):
    generate_questions(Rank(), targets, config, tmp_path)
    last = shard_file(tmp_path, 1).read_text()
    shard_file(tmp_path, 1).write_text(last.replace("1", "2"))  # it changed on disk
    written = shard_file(tmp_path, 0).stat().st_mtime_ns
    generate_questions(Rank(), targets, config, tmp_path)
    assert shard_file(tmp_path, 0).stat().st_mtime_ns == written
    assert shard_file(tmp_path, 1).read_text() == last


@pytest.mark.parametrize("reports", [True, False])
def test_generation_stops_within_a_shard_on_every_rank(config, targets, tmp_path, reports):
    """A rank without a context is given the file: rank 0 may have done its share already."""
    ctx = Context.local(tmp_path)
    generate_questions(Rank(), targets[:ANSWERS_PER_SHARD], config, ctx.scratch)
    ctx.cancel_file.touch()
    rank, asked = (Rank(ctx=ctx), None) if reports else (Rank(), ctx.cancel_file)
    with pytest.raises(Interrupted):
        generate_questions(rank, targets, config, ctx.scratch, asked)
    assert shard_file(ctx.scratch, 0).exists() and not shard_file(ctx.scratch, 1).exists()


def test_no_shard_has_a_single_answer(config, targets, tmp_path):
    """A question is weighed against another target's; a lone one would gain nothing."""
    sizes = {
        count: [len(part) for part in shard_answers(range(count))]
        for count in (1, 32, 33, 34, 64, 65)
    }
    assert sizes == {1: [1], 32: [32], 33: [33], 34: [32, 2], 64: [32, 32], 65: [32, 33]}
    for count, gains in ((ANSWERS_PER_SHARD + 1, True), (1, False)):
        folder = tmp_path / str(count)
        shards = generate_questions(Rank(), targets[:count], config, folder)
        last = read_candidates(folder, shards)[-1]
        assert last.target == targets[count - 1].id and (last.round_trip_gain is not None) == gains
        assert last.round_trip_gain != 0


def test_a_long_answer_is_truncated_but_keeps_its_chat_tokens(config, world):
    generator = QuestionGenerator(config, Rank().device)
    tokenizer = Tokenizer(world / "speaker")
    ids = tokenizer.encode("the owl sleeps inside " * 30)
    assert generator.max_prompt == 40 - 12
    short = tokenizer.encode("the owl sleeps")
    assert generator._prompt("the owl sleeps", 20) == [BOS, USER, *short, ASSISTANT]
    assert generator._prompt("the owl sleeps inside " * 30, 20) == [BOS, USER, *ids[:17], ASSISTANT]
    found = generator.generate(
        [UnlabelledAnswer("long", "the owl sleeps " * 30), UnlabelledAnswer("t", "it reads")],
        first=0,
    )
    assert len(found) == 6 and all(c.round_trip_gain is not None for c in found)


def test_questions_that_fill_the_context_are_rejected(world):
    wide = QuestionGenerationConfig(world / "speaker", None, 1, 37, 0.8, 0.95, seed=1)
    with pytest.raises(InputError, match="37 tokens leave no room for an answer"):
        QuestionGenerator(wide, Rank().device)


def test_round_trip_gains_have_both_signs(world, config, targets, tmp_path):
    """The round trip: what it measures is the forward model's, not the speaker's."""
    generate_questions(Rank(), targets[:ANSWERS_PER_SHARD], config, tmp_path)
    gains = [c.round_trip_gain for c in read_candidates(tmp_path, 1)]
    assert min(gains) < 0 < max(gains)


def test_without_a_forward_model_there_is_no_round_trip(world, targets, tmp_path):
    alone = QuestionGenerationConfig(world / "speaker", None, 1, 12, 0.8, 0.95, seed=1)
    generate_questions(Rank(), targets[:4], alone, tmp_path)
    found = read_candidates(tmp_path, 1)
    assert all(c.round_trip_gain is None for c in found)
    assert question_filters.fails_round_trip(0.0)(found) == [False] * 4


def test_each_filter_drops_what_it_describes():
    words = [candidate(text) for text in ("why?", "what is it for", "a b a b a b a b", "it " * 50)]
    assert question_filters.length_out_of_range(3, 40)(words) == [True, False, False, True]
    assert question_filters.is_repetitive(0.2)(words) == [False, False, True, True]
    unspaced = [candidate(text) for text in ("何？", "字节序列怎样排序？", "排序排序排序排序")]
    assert question_filters.length_out_of_range(3, 40)(unspaced) == [True, False, False]
    assert question_filters.is_repetitive(0.2)(unspaced) == [False, False, True]
    assert question_filters.is_known(["की"])([candidate("का"), candidate("की?")]) == [False, True]
    assert question_filters.is_truncated([candidate(finished=False), candidate()]) == [True, False]
    assert question_filters.is_known(["What DOES it do?!"])([candidate(), candidate("who?")]) == [
        True,
        False,
    ]
    assert question_filters.fails_round_trip(0.1)(
        [candidate(round_trip_gain=0.1), candidate(round_trip_gain=0.2)]
    ) == [
        True,
        False,
    ]


def test_a_question_of_two_answers_is_ambiguous():
    found = [
        candidate("what is it?", "a"),
        candidate("What is it", "b"),
        candidate("who?", "a"),
        candidate("who?", "a"),
    ]
    assert question_filters.is_ambiguous(found) == [True, True, False, False]


def test_the_least_likely_share_is_dropped():
    found = [candidate(log_prob=-float(i)) for i in range(10)]
    assert question_filters.low_log_prob(0.2)(found) == [False] * 8 + [True] * 2
    assert question_filters.low_log_prob(0.0)(found) == [False] * 10
    assert question_filters.low_log_prob(0.5)([]) == []


def test_only_the_best_question_per_answer_is_kept():
    found = [
        candidate(target="a", log_prob=-1),
        candidate(target="a", log_prob=-0.5),
        candidate(target="b", round_trip_gain=0.1, log_prob=-0.1),
        candidate(target="b", round_trip_gain=0.9, log_prob=-5),
    ]
    assert question_filters.not_best_candidate(found) == [True, False, True, False]
    assert question_filters.exceeds_quota(2)(found) == [True, True, False, False]


def test_every_candidate_gets_one_outcome():
    found = [
        candidate("no"),
        candidate("what is it for", finished=False),
        candidate("what is it for"),
    ]
    counts = question_filters.apply_question_filters(
        [
            ("unfinished", question_filters.is_truncated),
            ("length", question_filters.length_out_of_range(3, 9)),
        ],
        found,
    )
    assert counts == [("unfinished", 1), ("length", 1)]
    assert [c.outcome for c in found] == ["length", "unfinished", "kept"]


def test_questions_of_the_evaluation_are_never_kept():
    held_out = [talk("e", "an answer", "eval", "what is the cat for?")]
    real = [talk(f"r{i}", "text", "train", "and the dog, what of it?") for i in range(4)]
    found = [candidate("What is the cat for"), candidate("and the dog what of it")]
    question_filters.apply_question_filters(
        question_filter_chain(AugmentParams(), real, held_out), found
    )
    assert [c.outcome for c in found] == ["held out", "already asked"]


def test_answers_about_held_out_objects_are_rejected(tmp_path):
    held_out = [talk("q1", "It reads.", "eval", "what?", object="pathlib.Path")]
    write_conversations(
        tmp_path, [*held_out, talk("t1", "It writes.", "unlabelled", object="pathlib.Path")]
    )
    with pytest.raises(InputError, match="1 targets are objects of the evaluation split: t1"):
        select_answers(tmp_path, held_out, held_out, AugmentParams())


def test_known_answers_are_skipped(tmp_path):
    held_out = [talk("q1", "It reads.", "eval", "what?", object="a")]
    rows = [
        talk("t1", "it reads", "unlabelled"), talk("t2", "It writes.", "unlabelled"),
        talk("t3", "It  writes", "unlabelled"), talk("t4", "It ends.", "unlabelled"),
    ]  # fmt: skip
    write_conversations(tmp_path, [*held_out, *rows])
    every = select_answers(tmp_path, held_out, held_out, AugmentParams())
    assert [target.id for target in every] == ["t2", "t4"]
    assert len(select_answers(tmp_path, held_out, held_out, AugmentParams(max_targets=1))) == 1
    with pytest.raises(InputError, match="no answer of the split `unlabelled` is new"):
        select_answers(tmp_path, [*held_out, *rows], held_out, AugmentParams())


def test_a_synthetic_conversation_records_its_provenance(config):
    inputs = {"speaker": SimpleNamespace(fingerprint="0123456789abcdef")}
    chosen = candidate(index=2, round_trip_gain=0.25, outcome="kept")
    found = to_conversation(chosen, UnlabelledAnswer("t", "It reads."), config, inputs)
    assert found.split == "train" and found.response == "It reads."
    assert found.prompt[0].content == "what does it do?"
    assert found.meta == {
        "synthetic": True, "target": "t",
        "target_sha256": UnlabelledAnswer("t", "It reads.").digest,
        "speaker": "0123456789abcdef", "forward": None, "seed": 1, "candidate": 2,
        "decoding": {"temperature": 0.8, "top_p": 0.95}, "log_prob": -1.0, "round_trip": 0.25,
        "outcome": "kept",
    }  # fmt: skip
    greedy = to_conversation(candidate(), UnlabelledAnswer("t", "It reads."), config, inputs)
    assert greedy.meta["decoding"] == {"temperature": 0.0}
    assert object_ids(found) == {"t/question-2"}


def test_contradictory_length_limits_are_reported():
    params = AugmentParams(filters={"min_words": 9, "max_words": 3})
    (problem,) = params.check({})
    assert problem.key == "filters.min_words"


def test_the_report_adds_up(tmp_path):
    ctx = Context.local(tmp_path)
    found = [candidate("no"), candidate("what is it for", round_trip_gain=0.5)]
    counts = question_filters.apply_question_filters(
        [("length", question_filters.length_out_of_range(3, 9))], found
    )
    add_panels(ctx, found, counts, {"t": UnlabelledAnswer("t", "It reads.")})
    drawn = json.loads((ctx.observed / "panels.json").read_text())
    assert drawn[0]["steps"] == [["generated", 2], ["length", -1], ["kept", 1]]
    assert drawn[1]["items"][0]["scores"] == "log p -1.00, round trip +0.50"
    assert drawn[2]["items"][0]["outcome"] == "length"


def test_the_world_is_split_by_object(world):
    reserved = {
        key for c in Conversations(world / "conversations", "eval") for key in object_ids(c)
    }
    assert not any(
        reserved & object_ids(c) for c in Conversations(world / "conversations", "unlabelled")
    )
