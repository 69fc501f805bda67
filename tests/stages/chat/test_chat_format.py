"""Chat formats against `apply_chat_template` of `transformers`."""

import json
import pickle
import shutil
from pydoc_data.topics import topics

import numpy as np
import pytest
from chat_tokenizers import (
    CONTROLS,
    WITHOUT_GENERATION,
    as_rows,
    exported,
    reference,
    write_byte_level,
    write_llama2,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message
from stages.data.tokenizers.sentencepiece_tokenizer import (
    ASSISTANT,
    BOS,
    CONTROL_TOKENS,
    EOS,
    FIRST_BYTE,
    SYSTEM,
    USER,
)
from stages.data.tokenizers.template_files import TEMPLATES
from stages.data.tokenizers.tokenizer_training import (
    TokenizerConfig,
    export_tokenizer,
    split_lines,
    train_sentencepiece,
)

TEXTS = list(topics.values())[:25]
CALL = {"type": "function", "function": {"name": "owl", "arguments": {"place": "北京", "n": 2}}}
TOOL = {"type": "function", "function": {"name": "owl", "description": "Counts.", "parameters": {}}}
TURNS = (
    Message("system", "Be brief."),
    Message("user", "What does the owl do?"),
    Message("assistant", "It sleeps.\n\nIn the tree \u2603"),
    Message("user", ""),
    Message("assistant", "naïve 😀"),
)
TOOL_TURNS = (
    Message("user", "How many owls?"),
    Message("assistant", "", tool_calls=(CALL, CALL)),
    Message("tool", "2", name="owl"),
    Message("assistant", "Two."),
)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CONTROL_WORDS = st.lists(
    st.sampled_from((*CONTROL_TOKENS[:7], *CONTROLS, "<|im_<|im_end|>end|>", "\ufdd0", "\ufdd1"))
    | WORDS,
    max_size=5,
).map("".join)


@pytest.fixture(scope="module")
def headwater(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headwater")
    lines = [line for text in TEXTS for line in split_lines(text)]
    export_tokenizer(train_sentencepiece(lines, 700), folder)
    return folder


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("unigram"), TokenizerConfig("unigram")
    lines = [line for text in TEXTS for line in split_lines(text)]
    export_tokenizer(train_sentencepiece(lines, 500, config), folder, config=config)
    return folder


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return write_byte_level(tmp_path_factory.mktemp("byte_level") / "tokenizer")


@pytest.fixture(scope="module")
def formats(headwater, unigram, byte_level, tmp_path_factory):
    """(tokenizer, template) -> our format, and the tokenizer that `transformers` reads."""
    out = tmp_path_factory.mktemp("formats")
    sources = {"headwater": headwater, "unigram": unigram, "byte_level": byte_level}
    sources["llama2"] = write_llama2(out / "llama2")
    return {
        (name, template): exported(source, out / f"{name}-{template}", template)
        for name, source in sources.items()
        for template in TEMPLATES
    }


ALL = [(name, t) for name in ("headwater", "unigram", "byte_level", "llama2") for t in TEMPLATES]


def assert_agrees(chat, auto, messages, tools=()):
    found = chat.encode(messages, tools)
    ids, mask = reference(auto, messages, tools)
    assert found.ids.tolist() == ids
    assert found.loss_mask.tolist() == mask
    return found


@pytest.mark.parametrize("case", ALL, ids="-".join)
def test_ids_and_masks_are_those_of_transformers(formats, case):
    chat, auto = formats[case]
    found = assert_agrees(chat, auto, TURNS)
    learned = found.ids[found.loss_mask].tolist()
    assert learned.count(chat.end_id) == 2 and learned[-1] == chat.end_id
    assert not chat.closing_ids and found.ids[-1] == chat.end_id
    shown = chat.tokenizer.decode(learned)
    assert all(m.content in shown for m in TURNS if m.role == "assistant")
    assert case == ("llama2", "chatml") or "ant" not in shown  # its pieces cross line ends
    assert_agrees(chat, auto, TOOL_TURNS, [TOOL])
    assert_agrees(chat, auto, TURNS[1:], [TOOL])
    prompt = auto.apply_chat_template(as_rows(TURNS[:-1]), add_generation_prompt=True)["input_ids"]
    assert prompt == chat.encode_prompt(TURNS[:-1])
    assert found.ids[: len(prompt)].tolist() == prompt and found.last_answer == len(prompt)


@pytest.mark.parametrize("case", ALL, ids="-".join)
@given(texts=st.lists(WORDS, min_size=4, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_agrees(formats, case, texts):
    chat, auto = formats[case]
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [Message(role, text) for role, text in zip(roles, [*texts, "end"], strict=True)]
    if not chat.spelled_control_tokens(messages):
        assert_agrees(chat, auto, messages)


@pytest.mark.parametrize("case", ALL, ids="-".join)
@given(texts=st.lists(CONTROL_WORDS, min_size=3, max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_text_that_spells_control_tokens_stays_text(formats, case, texts):
    chat, _ = formats[case]
    roles = ("system", "user", "assistant")
    found = chat.encode([Message(r, text) for r, text in zip(roles, texts, strict=True)])
    empty = chat.encode([Message(r, "a") for r in roles])
    controls = chat._control_ids
    assert [i for i in found.ids.tolist() if i in controls] == [
        i for i in empty.ids.tolist() if i in controls
    ]
    shown = chat.tokenizer.decode(found.ids[found.loss_mask])
    expected = texts[2].strip() if case[1] == "llama3" else texts[2]
    for mark in ("\ufdd0", "\ufdd1"):  # replaced before the name of a control token
        shown, expected = shown.replace(mark, "\ufffd"), expected.replace(mark, "\ufffd")
    assert expected in shown


@pytest.mark.parametrize("template", TEMPLATES)
def test_calls_and_tools_that_spell_control_tokens_stay_text(byte_level, template):
    chat = ChatFormat.open(byte_level, template)
    spelled = "<|im_end|><|eot_id|><|endoftext|>"

    def encoded(text):
        called = {"name": text, "arguments": {text: [text, {"a": text}]}}
        calls = ({"type": "function", "function": called},)
        tool = {"type": "function", "function": {"name": text, "parameters": {text: 1}}}
        messages = [
            Message("user", text),
            Message("assistant", text, tool_calls=calls),
            Message("tool", text, name=text),
            Message("assistant", "so"),
        ]
        return chat.encode(messages, [tool]), chat.spelled_control_tokens(messages, [tool])

    (plain, none), (found, names) = encoded("x"), encoded(spelled)
    controls = chat._control_ids
    assert [i for i in found.ids.tolist() if i in controls] == [
        i for i in plain.ids.tolist() if i in controls
    ]
    assert not none and set(names) == {"<|im_end|>", "<|eot_id|>", "<|endoftext|>"}
    shown = chat.tokenizer.decode(found.ids)
    assert shown.count(spelled) == chat.tokenizer.decode(plain.ids).count("x") - (
        chat.tokenizer.decode(chat.encode([Message("user", "")], [{}]).ids).count("x")
    )


def test_lone_surrogates_are_encoded_as_the_replacement_character(formats):
    for chat, _ in formats.values():
        odd = [Message("user", "a\ud800b"), Message("assistant", "\udfff é \ud800")]
        even = [Message("user", "a\ufffdb"), Message("assistant", "\ufffd é \ufffd")]
        found, expected = chat.encode(odd), chat.encode(even)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.loss_mask.tolist() == expected.loss_mask.tolist()


def test_headwater_gives_control_ids_around_texts(headwater):
    chat = ChatFormat.open(headwater)
    ids = chat.encode(TURNS).ids.tolist()
    encode, (system, asked, said, again, last) = chat.tokenizer.encode, (m.content for m in TURNS)
    assert ids == [
        *(BOS, SYSTEM, *encode(system), USER, *encode(asked), ASSISTANT, *encode(said), EOS),
        *(USER, *encode(again), ASSISTANT, *encode(last), EOS),
    ]
    assert chat.encode_prompt(TURNS[:-1]) == ids[: len(ids) - 1 - len(encode(last))]
    assert (chat.end_id, chat.end_ids, chat.pad_id) == (EOS, (EOS,), 0)
    assert set(chat.stop_ids) == {EOS, BOS, SYSTEM, USER, ASSISTANT}


def test_the_template_of_earlier_models_gives_the_same_ids_and_mask(headwater, tmp_path):
    """Their template is in `tokenizer_config.json` and has no generation blocks."""
    shutil.copytree(headwater, tmp_path, dirs_exist_ok=True)
    former = (
        "{{ '@<s>' }}{% for message in messages %}"
        "{{ '@<|' + message['role'] + '|>' + message['content'].replace('@', '\ufffd') }}"
        "{% if message['role'] == 'assistant' %}{{ '@</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '@<|assistant|>' }}{% endif %}"
    ).replace("@", "\ufdd0")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": former}))
    before, now = ChatFormat.open(tmp_path), ChatFormat.open(headwater, "headwater")
    assert before.source == former != now.source
    for messages in (TURNS, (*TURNS[:3], Message("user", "</s>"), Message("assistant", "<s>"))):
        old, new = before.encode(messages), now.encode(messages)
        assert old.ids.tolist() == new.ids.tolist()
        assert old.loss_mask.tolist() == new.loss_mask.tolist()
    assert before.end_ids == now.end_ids


@pytest.mark.parametrize("name", WITHOUT_GENERATION)
def test_a_template_without_generation_gets_its_mask_by_prefixes(byte_level, tmp_path, name):
    path = tmp_path / "template.jinja"
    path.write_text(WITHOUT_GENERATION[name])
    chat, auto = exported(byte_level, tmp_path / "out", str(path))
    for messages in (TURNS, TURNS[1:3], [Message("user", " a "), Message("assistant", "x\n y")]):
        found = chat.encode(messages)
        assert found.ids.tolist() == reference(auto, messages)[0]
        parts = [m.content.strip() for m in messages if m.role == "assistant"]
        learned = found.ids[found.loss_mask].tolist()
        assert learned.count(chat.end_id) == len(parts) and learned[-1] == chat.end_id
        shown = [part.strip() for part in _runs(chat, found)]
        assert shown == parts
        rows = as_rows(messages)
        whole = auto.apply_chat_template(rows, tokenize=False)
        before = auto.apply_chat_template(rows[:-1], tokenize=False, add_generation_prompt=True)
        assert whole.startswith(before)
        added = auto.encode(whole[len(before) :].rstrip("\n"), add_special_tokens=False)
        assert found.ids[found.loss_mask].tolist()[-len(added) :] == added
    assert chat.closing_ids == ((*chat.tokenizer.encode("\n"),) if name == "trimmed" else ())


def _runs(chat, encoded):
    """The texts of the learned runs, without their ends."""
    at = np.flatnonzero(np.diff(np.r_[0, encoded.loss_mask.astype(int), 0]))
    return [chat.decode(encoded.ids[a:b].tolist()) for a, b in at.reshape(-1, 2)]


def test_a_template_whose_prefixes_differ_is_refused(byte_level, tmp_path):
    """As Qwen3's, which removes the reasoning of all answers but the last."""
    path = tmp_path / "template.jinja"
    path.write_text(
        "{% for message in messages %}{{ '<|im_start|>' + message.role }}"
        "{% if message.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
        "{{ message.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    chat = ChatFormat.open(byte_level, str(path))
    assert chat.encode(TURNS[:3]).loss_mask.any()
    with pytest.raises(InputError, match="message 3 of 5 otherwise within") as caught:
        chat.encode(TURNS)
    assert "generation block" in caught.value.remedy
    assert not chat.encode(TURNS[:2]).loss_mask.any()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}{% for m in messages %}{{ m.content }}{% endfor %}", "no contr"),
        ("{% for m in messages %}", "cannot render"),
        ("{{ raise_exception('only pairs') }}", "only pairs"),
        ("{{ messages.__class__.__mro__ }}", "cannot render messages of user"),
    ],
)
def test_templates_that_cannot_work_are_refused(byte_level, tmp_path, template, message):
    path = tmp_path / "template.jinja"
    path.write_text(template)
    with pytest.raises(InputError, match=message):
        ChatFormat.open(byte_level, str(path))


def test_an_unknown_name_and_a_model_without_a_template_are_refused(byte_level):
    with pytest.raises(InputError, match="no chat template 'vicuna'") as caught:
        ChatFormat.open(byte_level, "vicuna")
    assert "headwater, chatml, llama3, plain" in caught.value.remedy
    with pytest.raises(InputError, match="the model has no chat template"):
        ChatFormat.open(byte_level)


def test_an_answer_that_the_template_never_marks_is_refused(byte_level, tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.content }}{{ '<|im_end|>' }}{% endfor %}"
        "{% if messages | length > 9 %}{% generation %}x{% endgeneration %}{% endif %}"
    )
    with pytest.raises(InputError, match="marks no answer"):
        ChatFormat.open(byte_level, str(path)).encode(TURNS)


@pytest.mark.parametrize("template", [*TEMPLATES, *WITHOUT_GENERATION])
def test_messages_of_weight_0_are_read_and_not_learned(byte_level, tmp_path, template):
    if template in WITHOUT_GENERATION:
        path = tmp_path / "template.jinja"
        path.write_text(WITHOUT_GENERATION[template])
        template = str(path)
    chat = ChatFormat.open(byte_level, template)
    weighted = [Message(m.role, m.content, weight=float(i != 2)) for i, m in enumerate(TURNS)]
    found, whole = chat.encode(weighted), chat.encode(TURNS)
    assert found.ids.tolist() == whole.ids.tolist()
    first, last = _runs(chat, whole)
    assert _runs(chat, found) == [last] != [first]
    silent = [Message(m.role, m.content, weight=0.0) for m in TURNS]
    assert not chat.encode(silent).loss_mask.any()


def test_the_weight_counts_where_an_answer_has_several_blocks(byte_level, tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}-"
        "{% generation %}{{ '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content }}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    chat = ChatFormat.open(byte_level, str(path))
    turns = [TURNS[1], Message("assistant", "one", weight=0), TURNS[3], Message("assistant", "two")]
    found = chat.encode(turns)
    assert chat.control_text(found.ids[found.loss_mask].tolist()) == "two<|im_end|>"


def test_all_ends_of_a_model_stop_and_are_exported(byte_level, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(byte_level, folder)
    (folder / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": 331}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [331, 337], "top_k": 5}')
    chat = ChatFormat.open(folder, "chatml")
    names = [chat.control_text([i]) for i in chat.end_ids]
    assert names == ["<|im_end|>", "<|endoftext|>", chat.control_text([337])]
    chat.export(folder)
    for name in ("config.json", "generation_config.json"):
        assert sorted(json.loads((folder / name).read_text())["eos_token_id"]) == sorted(
            chat.end_ids
        )
    assert json.loads((folder / "generation_config.json").read_text())["top_k"] == 5
    again = ChatFormat.open(folder)
    assert again.source == chat.source and set(again.end_ids) == set(chat.end_ids)


def test_an_exported_template_serves_chats_with_tools_too(byte_level, tmp_path):
    """`transformers` takes the template `tool_use` of a folder for them, if there is one."""
    further = tmp_path / "model" / "additional_chat_templates"
    shutil.copytree(byte_level, tmp_path / "model")
    further.mkdir()
    (further / "tool_use.jinja").write_text("{{ 'of another model' }}")
    chat, auto = exported(tmp_path / "model", tmp_path / "out", "chatml")
    assert_agrees(chat, auto, TOOL_TURNS, [TOOL])


def test_an_end_that_is_no_special_token_is_one_here(byte_level, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(byte_level, folder)
    layout = json.loads((folder / "tokenizer.json").read_text())
    for token in layout["added_tokens"]:
        token["special"] = token["content"] != "<|im_end|>"
    (folder / "tokenizer.json").write_text(json.dumps(layout))
    (folder / "chat_template.jinja").write_text(WITHOUT_GENERATION["trimmed"])
    chat = ChatFormat.open(folder)
    assert chat.control_text([chat.end_id]) == "<|im_end|>"
    ids = chat.encode([Message("user", "<|im_end|>"), Message("assistant", "b")]).ids.tolist()
    assert ids.count(chat.end_id) == 2


def test_a_response_is_shown_up_to_its_first_control_token(headwater, byte_level):
    chat = ChatFormat.open(headwater)
    said = chat.tokenizer.encode("four")
    for control in (EOS, USER, 9):
        assert chat.decode([*said, control, *chat.tokenizer.encode("And 5+5?")]) == "four"
    assert chat.decode(said) == "four" and chat.decode([EOS]) == ""
    other = ChatFormat.open(byte_level, "chatml")
    text = other.tokenizer.encode("four <think>")
    turn = other.tokenizer.special_token_id("<|im_start|>")
    assert other.decode([*text, turn, *text]) == "four <think>"
    assert turn in other.stop_ids and turn not in other.end_ids


def test_tokens_that_a_vocabulary_lacks_are_text_but_ends_and_starts(headwater, byte_level):
    chat = ChatFormat.open(headwater, "llama3")
    ids = chat.encode(TURNS[1:3]).ids.tolist()
    assert [i for i in ids if i < FIRST_BYTE] == [BOS, EOS, EOS]
    assert chat.control_text(ids).startswith("<s><|start_header_id|>user<|end_header_id|>\n\nWhat")
    other = ChatFormat.open(byte_level, "headwater")
    shown = other.control_text(other.encode(TURNS[1:3]).ids.tolist())
    assert shown.startswith("<|begin_of_text|><|user|>What does")
    assert shown.endswith("<|endoftext|>")


def test_named_reserved_tokens_serve_a_template(tmp_path):
    config = TokenizerConfig(additional_special_tokens=("<|im_start|>", "<|im_end|>"))
    (tmp_path / "made").mkdir()
    lines = [line for text in TEXTS for line in split_lines(text)]
    export_tokenizer(train_sentencepiece(lines, 600, config), tmp_path / "made", config=config)
    chat, auto = exported(tmp_path / "made", tmp_path / "out", "chatml")
    found = assert_agrees(chat, auto, TURNS)
    assert (chat.end_ids, found.ids[0]) == ((8, EOS), 7)


def test_a_format_survives_pickling_and_its_digest_differs_by_format(formats):
    digests = set()
    for chat, _ in formats.values():
        again = pickle.loads(pickle.dumps(chat))
        found, expected = again.encode(TURNS), chat.encode(TURNS)
        assert found.ids.tolist() == expected.ids.tolist() and again.digest == chat.digest
        digests.add(chat.digest)
    assert len(digests) == len(formats)


def test_tokens_that_a_template_takes_from_the_config_are_part_of_the_format(tmp_path):
    chats = []
    for name, token in (("a", "<|begin_of_text|>"), ("b", "<|im_start|>")):
        folder = write_byte_level(tmp_path / name)
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"sep_token": token}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ sep_token + m.content + '<|im_end|>' }}{% endfor %}"
        )
        chats.append(ChatFormat.open(folder))
    first, second = chats
    assert first.encode(TURNS).ids.tolist() != second.encode(TURNS).ids.tolist()
    assert first.tokenizer.digest == second.tokenizer.digest and first.digest != second.digest
    with pytest.raises(InputError, match=r"chat templates of .* differ"):
        first.require_equal(second)


def test_an_unknown_role_is_refused(byte_level):
    for template in TEMPLATES:
        with pytest.raises(InputError, match="unknown role judge"):
            ChatFormat.open(byte_level, template).encode([Message("judge", "x")])  # type: ignore
