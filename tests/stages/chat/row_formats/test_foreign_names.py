"""Rows under the field names of other programs, and odd values in them."""

import pytest

from pipeline.errors import InputError
from stages.chat.row_formats.format_registry import FORMATS, detect_format
from stages.chat.row_options import RowOptions
from stages.chat.turn_checks import check_ranking
from stages.chat.turns import Row, RowError
from stages.data.conversation_dataset import Message

ASKED, ANSWER = Message("user", "why?"), Message("assistant", "because")
HUGE = 10**400


def read(values, wanted="dialogues", options=None):
    options = options or RowOptions()
    found = detect_format(values, wanted, options)
    return getattr(found, wanted)(Row(values, "f", "line 1"), options)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("question", "completion"),
        ("instruction", "completion"),
        ("message_1", "message_2"),
    ],
)
def test_names_of_question_and_answer(asked, answered):
    values = {asked: "why?", answered: "because"}
    [dialogue] = read(values)
    assert dialogue.messages == (ASKED, ANSWER)
    [wanted] = read({**values, "label": True})
    assert wanted.messages == (ASKED, ANSWER)


@pytest.mark.parametrize("asked", ["input", "question", "instruction", "prompt"])
@pytest.mark.parametrize("ending", ["", "_response"])
def test_names_of_pairs(asked, ending):
    [pair] = read(
        {asked: "why?", f"chosen{ending}": "because", f"rejected{ending}": "so"}, "rankings"
    )
    assert (pair.prompt, pair.responses) == ((ASKED,), ("because", "so"))


def test_the_prompt_of_two_texts_is_the_words_that_both_begin_with():
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    [pair] = read(texts, "rankings")
    assert pair.prompt == (Message("user", "The sky is"),)
    assert pair.responses == (" blue.", " black.")
    [with_system] = read({**texts, "system": "Be brief."}, "rankings")
    assert with_system.prompt == (Message("system", "Be brief."), *pair.prompt)


@pytest.mark.parametrize(
    ("rejected", "reason"), [("No sky.", "no_prompt"), ("The sky.", "identical_responses")]
)
def test_two_texts_without_a_prompt_are_no_pair(rejected, reason):
    with pytest.raises(RowError) as error:
        read({"chosen": "The sky.", "rejected": rejected}, "rankings")
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("values", "content"),
    [
        ({"context": "c", "question": "q", "answer": "a"}, "questions on a context"),
        ({"article": "c", "question": "q", "answer": "a"}, "questions on an article"),
        ({"article": "c", "summary": "s"}, "articles with summaries"),
        ({"question": "q", "choices": ["a"], "solution": "s"}, "questions with choices"),
        ({"instruction": "i", "reflection": "r", "corrected": "c"}, "reflections"),
        ({"input_ids": [1], "labels": [1], "text": "a"}, "token ids"),
    ],
)
def test_prompts_of_several_parts_are_refused_by_name(values, content):
    with pytest.raises(InputError, match=f"rows of {content} are not read as conversations"):
        read(values)


def test_the_remedies_of_refused_prompts_read_them():
    options = RowOptions(fields={"instruction": "context", "input": "question", "output": "answer"})
    [dialogue] = read({"context": "c", "question": "q", "answer": "a"}, options=options)
    assert [message.content for message in dialogue.messages] == ["c\nq", "a"]
    options = RowOptions(fields={"prompt": "article", "completion": "summary"})
    [dialogue] = read({"article": "c", "summary": "s"}, options=options)
    assert [message.content for message in dialogue.messages] == ["c", "s"]


def test_an_input_without_an_instruction_is_the_prompt():
    [dialogue] = read({"instruction": "", "input": "1 and 2", "output": "3"})
    assert dialogue.messages[0] == Message("user", "1 and 2")


def tree(*replies):
    return {"prompt": {"role": "prompter", "text": "why?", "replies": list(replies)}}


def reply(text, rank, **more):
    return {"role": "assistant", "text": text, "rank": rank, "replies": [], **more}


def test_deleted_messages_of_trees_are_not_read():
    values = tree(reply("a", 0.0), reply("b", 1.0, deleted=True), reply("c", 2.0))
    assert [dialogue.messages[-1].content for dialogue in read(values)] == ["a", "c"]
    [ranking] = read(values, "rankings")
    assert (ranking.responses, ranking.ranks) == (("a", "c"), (0, 1))


def test_role_words_of_the_user_count_in_trees():
    values = tree(reply("a", 0, role="helper"))
    [dialogue] = read(values, options=RowOptions(roles={"helper": "assistant"}))
    assert dialogue.messages[-1] == Message("assistant", "a")


@pytest.mark.parametrize(
    ("name", "values", "field"),
    [
        ("oasst", tree(reply("a", HUGE), reply("b", 1)), "prompt.replies[0].rank"),
        ("oasst", tree(reply("a", float("nan")), reply("b", 1)), "prompt.replies[0].rank"),
        (
            "ranked_responses",
            {"prompt": "why?", "responses": ["a", "b"], "scores": [HUGE, 1]},
            "scores[0]",
        ),
        (
            "messages",
            {"messages": [{"role": "assistant", "content": "a", "weight": HUGE}]},
            "messages[0].weight",
        ),
    ],
)
def test_numbers_beyond_floats_are_unreadable(name, values, field):
    wanted = "rankings" if FORMATS[name].has_rankings else "dialogues"
    with pytest.raises(RowError) as error:
        read(values, wanted)
    assert (error.value.reason, error.value.field) == ("unreadable", field)


def test_a_margin_beyond_floats_is_none():
    values = {"prompt": "why?", "chosen": "because", "rejected": "so", "margin": HUGE}
    [pair] = read(values, "rankings")
    assert check_ranking(pair, RowOptions())[0].meta == {}
