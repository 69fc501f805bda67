"""Rankings: transcripts of hh-rlhf, lists of responses, and message trees."""

import pytest

from stages.chat.row_formats.format_registry import detect_format
from stages.chat.row_options import RowOptions
from stages.chat.turn_checks import check_dialogue, check_ranking
from stages.chat.turns import Row, RowError
from stages.data.conversation_dataset import Message

U, A = Message("user", "why?"), Message("assistant", "so")


def rankings(name, values):
    found = detect_format(values, "rankings", RowOptions())
    assert found.name == name
    return found.rankings(Row(values, "f", "line 1"), RowOptions())


def dialogues(values, **options):
    found = detect_format(values, "dialogues", RowOptions())
    return found.dialogues(Row(values, "f", "line 1"), RowOptions(**options))


def transcript(*said):
    return "".join(f"\n\n{('Human', 'Assistant')[at % 2]}: {text}" for at, text in enumerate(said))


def test_transcripts_are_turns():
    pair = {
        "chosen": transcript("why?", "so", "and?", "that"),
        "rejected": transcript("why?", "so", "and?", "this\n\nor this"),
    }
    [ranking] = rankings("hh_rlhf", pair)
    assert ranking.prompt == (U, A, Message("user", "and?"))
    assert ranking.responses == ("that", "this\n\nor this")
    [dialogue] = dialogues(pair)
    assert dialogue.messages == (*ranking.prompt, Message("assistant", "that"))


@pytest.mark.parametrize(
    ("rejected", "reason"),
    [
        (transcript("how?", "so"), "prompts_differ"),
        (transcript("why?", "so", "and?", "that"), "prompts_differ"),
    ],
)
def test_transcripts_of_other_prompts_are_no_pair(rejected, reason):
    with pytest.raises(RowError) as error:
        rankings("hh_rlhf", {"chosen": transcript("why?", "that"), "rejected": rejected})
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "values",
    [
        {"responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
        {"completions": ["a", "b", "c"], "scores": [0.5, 7, 0.5]},
        {"responses": [{"text": t, "rank": r} for t, r in (("a", 5), ("b", 3), ("c", 5))]},
        {
            "completions": [
                {"response": t, "overall_score": r} for t, r in (("a", 1), ("b", 2), ("c", 1))
            ]
        },
    ],
)
def test_ranks_and_scores_are_dense_ranks(values):
    [ranking] = rankings("ranked_responses", {"prompt": "why?", **values})
    assert ranking.prompt == (U,)
    assert (ranking.responses, ranking.ranks) == (("a", "b", "c"), (1, 0, 1))
    [dialogue] = dialogues({"prompt": "why?", **values})
    assert dialogue.messages[-1].content == "b"


def test_responses_without_a_rank_are_left_out_and_counted():
    values = {"prompt": "why?", "responses": ["a", "b", "c"], "ranks": [1, None, 0]}
    [ranking] = rankings("ranked_responses", values)
    checked, changes = check_ranking(ranking, RowOptions())
    assert (checked.responses, checked.ranks) == (("a", "c"), (1, 0))
    assert changes == ("unranked_responses",)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"ranks": [0]}, "ranks"),
        ({"ranks": [0, "x"]}, "ranks[1]"),
        ({"ranks": [0, float("nan")]}, "ranks[1]"),
        ({"responses": ["a", 3]}, "responses[1]"),
        ({"ranks": [None, None]}, "responses"),
    ],
)
def test_errors_of_lists_name_the_field(changed, field):
    values = {"prompt": "why?", "responses": ["a", "b"], "ranks": [0, 1], **changed}
    with pytest.raises(RowError) as error:
        rankings("ranked_responses", values)
    assert error.value.field == field


def node(text, *replies, role="assistant", rank=None):
    return {"text": text, "role": role, "rank": rank, "replies": list(replies)}


def asked(text, *replies):
    return node(text, *replies, role="prompter")


TREE = {
    "prompt": asked(
        "q",
        node("a1", asked("q1", node("b1", rank=1), node("b2", rank=0)), asked("q2"), rank=0),
        node("a2", asked("q3"), asked("q4"), rank=1),
        node("a3"),
    )
}


def learned(messages):
    return [m.content for m in messages if m.role == "assistant" and m.weight]


def test_paths_of_a_tree_learn_each_answer_once():
    found = dialogues(TREE)
    texts = [[message.content for message in dialogue.messages] for dialogue in found]
    assert texts == [
        ["q", "a1", "q1", "b1"],
        ["q", "a1", "q1", "b2"],
        ["q", "a1", "q2"],
        ["q", "a2", "q3"],
        ["q", "a2", "q4"],
        ["q", "a3"],
    ]
    assert [learned(d.messages) for d in found] == [["a1", "b1"], ["b2"], [], ["a2"], [], ["a3"]]
    everywhere = [learned(d.messages) for d in dialogues(TREE, replies="all")]
    assert everywhere == [["a1", "b1"], ["a1", "b2"], ["a1"], ["a2"], ["a2"], ["a3"]]


def test_paths_without_an_answer_of_their_own_are_left_out():
    kept, left_out = [], []
    for dialogue in dialogues(TREE):
        try:
            kept.append(check_dialogue(dialogue, RowOptions())[1])
        except RowError as error:
            left_out.append(error.reason)
    assert kept == [(), (), ("unanswered_end",), ()]
    assert left_out == ["nothing_learned", "nothing_learned"]


def test_rankings_of_a_tree_are_one_per_message_with_several_ranked_replies():
    first, second = rankings("oasst", TREE)
    assert [m.content for m in first.prompt] == ["q"]
    assert (first.responses, first.ranks, first.unranked) == (("a1", "a2"), (0, 1), 1)
    assert [m.content for m in second.prompt] == ["q", "a1", "q1"]
    assert (second.responses, second.ranks, second.unranked) == (("b1", "b2"), (1, 0), 0)


def test_replies_without_any_rank_are_left_out_and_counted():
    [ranking] = rankings("oasst", {"prompt": asked("q", node("a"), node("b"))})
    with pytest.raises(RowError) as error:
        check_ranking(ranking, RowOptions())
    assert error.value.reason == "unranked"


@pytest.mark.parametrize(
    ("reply", "field"),
    [
        ("x", "prompt.replies[0]"),
        (node(3), "prompt.replies[0].text"),
        (node("a", rank="first"), "prompt.replies[0].rank"),
        (node("a", role="robot"), "prompt.replies[0].role"),
        ({**node("a"), "replies": "x"}, "prompt.replies[0].replies"),
    ],
)
def test_errors_of_trees_name_the_message(reply, field):
    with pytest.raises(RowError) as error:
        dialogues({"prompt": asked("q", reply)})
    assert error.value.field == field
