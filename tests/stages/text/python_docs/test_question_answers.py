"""Docstrings found without importing, and the questions, answers and contrasts made of them."""

from collections import Counter

import pytest

from stages.text.python_docs.docstrings import (
    DocumentedObject,
    documented_objects,
    first_sentence,
    module_documents,
)
from stages.text.python_docs.holdout import (
    EVAL_SHARE,
    UNLABELLED_SHARE,
    is_held_out,
    split_of,
)
from stages.text.python_docs.preference_pairs import build_preferences, shuffle_words
from stages.text.python_docs.question_answers import ObjectSummary

SOURCE = b'''
"""A module.

More of it.
"""
raise SystemExit("never run")

class Box(dict):
    """Holds things."""

    def put(self, thing, /, *rest, where=None, **more):
        """Put a thing in.

        For example

            indented
        """
        def inner():
            """Not to be seen."""

    async def take(self, *, at): """Take it out."""

    class Lid:
        """Closes."""

def bare(): pass
def blank(): """   """
'''


def test_objects_are_found_in_the_order_of_the_file():
    assert [(o.name, o.kind, o.signature) for o in documented_objects(SOURCE, "m.box")] == [
        ("m.box", "module", ""),
        ("m.box.Box", "class", "Box"),
        ("m.box.Box.put", "method", "put(self, thing, *rest, where, **more)"),
        ("m.box.Box.take", "method", "take(self, *, at)"),
        ("m.box.Box.Lid", "class", "Lid"),
    ]


def test_docstrings_lose_their_indentation():
    objects = {item.name: item for item in documented_objects(SOURCE, "m")}
    assert objects["m.Box.put"].doc == "Put a thing in.\n\nFor example\n\n    indented"
    assert objects["m.Box.put"].parent == "m.Box" and objects["m"].parent == ""


@pytest.mark.parametrize("source", [b"", b'"""x', b"print 1 '''", b"\0'''", b"(" * 500 + b"'''"])
def test_what_is_no_module_has_no_objects(source):
    assert documented_objects(source, "m") == []


def test_a_document_is_signatures_and_docstrings_of_a_few_pages():
    items = [DocumentedObject(f"m.f{i}", "function", f"f{i}(x)", "y" * 90) for i in range(10)]
    texts = list(module_documents(items, size=250))
    assert len(texts) == 5 and texts[0].startswith("m.f0(x)\n\nyyy")
    assert "\n\n".join(texts) == "\n\n".join(f"m.f{i}(x)\n\n{'y' * 90}" for i in range(10))
    assert list(module_documents([])) == []


@pytest.mark.parametrize(
    ("doc", "answer"),
    [
        ("Return the sum of the numbers.", "Return the sum of the numbers."),
        ("return the sum of\n   the numbers", "Return the sum of the numbers."),
        ("First sentence here. Second one.", "First sentence here."),
        ("Reads e.g. files from disk. Then more.", "Reads e.g. files from disk."),
        ("Make a :class:`~m.Path` of ``text`` **now**.", "Make a m.Path of text now."),
        ("Opens the file quickly.\n\nParameters\n---", "Opens the file quickly."),
        ("Opens the file quickly. Args: name: the file", "Opens the file quickly."),
        ("Does it.", None),
        ("x" * 400, None),
        ("name (str): the name of the thing", None),
        ("some_name is set to the other thing", None),
        (">>> print(1) and then some more", None),
        ("The following are known to be true:", None),
        ("1234 5678 9012 3456 7890 1234 5678", None),
        ("", None),
    ],
)
def test_summaries(doc, answer):
    assert first_sentence(doc) == answer


def summaries(count=600):
    tops = ("alpha", "beta", "gamma")
    return [
        ObjectSummary(
            f"{tops[i % 3]}.C{i // 12}.m{i}", "method", f"Does thing number {i} for the caller."
        )
        for i in range(count)
    ]


def test_splits_have_their_shares_and_never_change():
    counts = Counter(entry.split for entry in summaries(6000))
    assert counts["eval"] / 6000 == pytest.approx(EVAL_SHARE, abs=0.02)
    assert counts["unlabelled"] / 6000 == pytest.approx(UNLABELLED_SHARE, abs=0.03)
    glob = "Iterate over this subtree and yield all existing files."
    assert ObjectSummary("pathlib.Path.glob", "method", glob).split == "unlabelled"


def test_objects_that_say_the_same_are_held_out_together():
    texts = [entry.sentence for entry in summaries(40)]
    assert {is_held_out(text) for text in texts} == {True, False}
    for text in texts:
        assert {ObjectSummary(name, "method", text).split for name in ("a.b", "c")} == {
            split_of(text)
        }
        assert is_held_out(f"{text.lower()}  And more.\n\n    Of it.") == (split_of(text) == "eval")
    assert not is_held_out(">>> no summary")


def test_questions_name_the_object_in_several_wordings():
    questions = [entry.question[0] for entry in summaries()]
    assert all(
        f"`{entry.name}`" in q.content for entry, q in zip(summaries(), questions, strict=True)
    )
    assert {q.role for q in questions} == {"user"}
    assert len({q.content.split("`")[0] for q in questions}) == 4


def test_contrasts_rank_the_true_over_the_near_over_the_far_over_the_shuffled():
    known = {entry.sentence: entry for entry in summaries()}
    by_name = {entry.name: entry for entry in summaries()}
    found = list(build_preferences(summaries()))
    assert len({p.id for p in found}) == len(found) > 300
    for preference in found:
        entry = by_name[preference.id]
        assert entry.split == preference.split != "unlabelled"
        assert preference.prompt == entry.question
        ranked = [r for _, r in sorted(zip(preference.ranks, preference.responses, strict=True))]
        assert ranked[0] == entry.sentence
        assert sorted(preference.ranks) == ([0, 1, 2, 3] if len(ranked) == 4 else [0, 2, 3])
        near, far, wrong = known.get(ranked[-3]), known[ranked[-2]], ranked[-1]
        assert far.top != entry.top and far.split == entry.split
        assert sorted(wrong.split()) == sorted(entry.sentence.split()) and wrong != entry.sentence
        if len(ranked) == 4:
            assert near.parent == entry.parent and near.split == entry.split and near != entry
    assert len({p.ranks for p in found if len(p.ranks) == 4}) == 24  # the place reveals nothing


def test_words_are_never_left_in_order():
    for i in range(300):
        assert shuffle_words("one two", str(i)) == "two one"
    assert shuffle_words("a b c d", "k") == shuffle_words("a b c d", "k")
