"""The chat format of a model: its tokenizer and its template; conversations become ids and a mask.

    <s> <|user|> question <|assistant|> answer </s> <|user|> ...          ids
     .     .        .           .          x     x      .                 loss mask

Ids and mask come from one rendering of the template. The mask covers the {% generation %} blocks;
of a template without them, what the rendering up to an assistant's message adds to the prompt
before it, up to its end token. Text of messages never becomes a control token: see
`stages.chat.control_tokens`.

On conversations that spell no control token, ids and mask are those of `apply_chat_template` in
`transformers`, with two exceptions of the mask: there it stops at the first block that begins with
a space, if the tokenizer takes spaces from the places of tokens; and of a last character of several
tokens it has the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.atomic_io import read_json
from pipeline.errors import InputError
from stages.chat.control_tokens import (
    ChatEncoder,
    ControlTokens,
    FastChat,
    TokenSpans,
    chat_encoder,
)
from stages.chat.template_rendering import Rendering, render_template
from stages.data.conversation_dataset import Json, Message
from stages.data.tokenizers.huggingface_tokenizer import (
    AnyTokenizer,
    HuggingFaceTokenizer,
    open_tokenizer,
)
from stages.data.tokenizers.sentencepiece_tokenizer import CONTROL_MARK, Tokenizer
from stages.data.tokenizers.template_files import (
    adapt_template,
    marks_answers,
    model_template,
    named_template,
)

if TYPE_CHECKING:
    from stages.models.hf_io import SpecialIds

_QUESTION, _ANSWER = "A question.", "An answer."
_REMEDY = "name another chat template: headwater, chatml, llama3, plain, or a jinja file"


@dataclass(frozen=True)
class EncodedChat:
    """Token ids and the loss mask: `loss_mask[t]` is true if the loss includes id t."""

    ids: npt.NDArray[np.int64]
    """Shape (T,)."""
    loss_mask: npt.NDArray[np.bool_]
    """Shape (T,); true for tokens of assistant messages and the end token after each."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def last_answer(self) -> int:
        """Index of the first token of the last run that the loss includes; the length if none."""
        learned = np.flatnonzero(self.loss_mask)
        if not len(learned):
            return len(self.ids)
        breaks = np.flatnonzero(np.diff(learned) > 1)
        return int(learned[breaks[-1] + 1] if len(breaks) else learned[0])


class ChatFormat:
    """Tokenizer and template of a model.

    Args:
        encoder: of the model's tokenizer.
        source: the template, in jinja, with the tokenizer's names of control tokens.
        further_ends: ids that the model's configs name as ends of a text.

    Raises:
        InputError: the template is broken, or writes no control token after an answer.
    """

    def __init__(self, encoder: ChatEncoder, source: str, further_ends: Sequence[int] = ()) -> None:
        self._encoder, self.source = encoder, source
        self.tokenizer: AnyTokenizer = encoder.tokenizer
        tokenizer, end = self.tokenizer, self._end_token()
        if end not in encoder.controls.ids and isinstance(tokenizer, HuggingFaceTokenizer):
            self._encoder = FastChat(tokenizer, further=[end])
        self.end_id = self._encoder.controls.ids[end]
        ends = (self.end_id, tokenizer.eos_id, *further_ends)
        self.end_ids = tuple(dict.fromkeys(ends))
        self.pad_id = tokenizer.padding_id

    @classmethod
    def open(cls, folder: Path, template: str | None = None) -> ChatFormat:
        """Open the chat format of a Model or Tokenizer folder.

        Args:
            folder: with a tokenizer.
            template: `headwater`, `chatml`, `llama3`, `plain`, or the path of a jinja file. A token
                that the tokenizer lacks is written as text, but the one that ends a turn becomes
                the tokenizer's end of documents, and the one that starts a conversation the start
                of documents, if there is one. Default: the model's own; `headwater` for a
                tokenizer made here.

        Raises:
            InputError: there is no such template, or it does not fit the tokenizer.
        """
        folder = Path(folder)
        tokenizer = open_tokenizer(folder)
        source = model_template(folder) if template is None else None
        if source is None and template is None and not isinstance(tokenizer, Tokenizer):
            raise InputError("the model has no chat template", where=str(folder), remedy=_REMEDY)
        encoder = chat_encoder(tokenizer)
        if source is None:
            source = adapt_template(
                named_template(template or "headwater"),
                lambda variable, token: _token_name(encoder, variable, token),
            )
        return cls(encoder, source, _configured_ends(folder, len(tokenizer)))

    @property
    def digest(self) -> str:
        """Digest of all that determines ids and masks."""
        variables = json.dumps(self._variables, sort_keys=True)
        parts = (self.tokenizer.digest, self.source, variables, str(self.end_ids), "2")
        return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())

    def encode(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> EncodedChat:
        """Encode a whole conversation with its loss mask, without messages of weight 0.

        Raises:
            InputError: the template refuses the messages, or does not show where answers are.
        """
        rows, hidden, tools = self._hidden(messages, tools)
        rendering = self._render(rows, tools)
        learned = [i for i, m in enumerate(messages) if m.role == "assistant" and m.weight > 0]
        spans = tuple(self._spans(messages, rows, tools, rendering, learned)) if learned else ()
        marked = self._encoder.controls.mark(Rendering(rendering.text, spans), hidden)
        found = self._encode(marked)
        mask = found.inside(marked.spans)
        if learned and not mask.any():
            raise InputError(
                "the chat template marks no answer of a conversation with one",
                remedy="remove its generation blocks, or put one around the assistant's text",
            )
        return EncodedChat(np.array(found.ids, np.int64), mask)

    def encode_prompt(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> list[int]:
        """Encode a prompt up to where the assistant's text begins, for generation."""
        rows, hidden, tools = self._hidden(messages, tools)
        rendering = self._render(rows, tools, add_generation_prompt=True)
        return self._encode(self._encoder.controls.mark(Rendering(rendering.text), hidden)).ids

    def encode_response(self, prompt: Sequence[Message], response: str) -> EncodedChat:
        """Encode a prompt with one response, its end token, and what the template writes after."""
        return self.encode((*prompt, Message("assistant", response)))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a response until its end token, or any other control token."""
        return self.tokenizer.decode(ids[: self.shown_length(ids)])

    def shown_length(self, ids: Sequence[int]) -> int:
        """Return the number of ids of a response before its first control token."""
        stops = self._control_ids
        return next((at for at, i in enumerate(ids) if int(i) in stops), len(ids))

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response that is shown: the ends, and all control tokens that the template
        writes, such as those of roles."""
        controls = self._encoder.controls
        turns = (Message("user", _QUESTION), Message("assistant", _ANSWER))
        written: list[str] = []
        for messages in (turns, (Message("system", _QUESTION), *turns)):
            with suppress(InputError):  # a template may refuse one of the system
                written += controls.spelled(self._render(_rows(messages), ()).text)
        return tuple(dict.fromkeys((*self.end_ids, *(controls.ids[name] for name in written))))

    @cached_property
    def closing_ids(self) -> tuple[int, ...]:
        """Ids that the template writes after the end token of the last message; most write none."""
        ids = self.encode_response([Message("user", _QUESTION)], _ANSWER).ids.tolist()
        return tuple(ids[len(ids) - ids[::-1].index(self.end_id) :])

    @cached_property
    def learns_end(self) -> bool:
        """True if the loss includes the end token of an answer; a generation block may stop
        before it."""
        chat = self.encode_response([Message("user", _QUESTION)], _ANSWER)
        return bool(chat.loss_mask[chat.ids == self.end_id].any())

    def spelled_control_tokens(
        self, messages: Sequence[Message], tools: Sequence[Json] = ()
    ) -> list[str]:
        """Return the control tokens that texts of a conversation spell, without their mark."""
        texts = [str(part) for row in _rows(messages) for part in _texts(row)]
        texts += [part for tool in tools for part in _texts(tool)]
        return [name for text in texts for name in self._plain_names.spelled(text)]

    def control_text(self, ids: Sequence[int]) -> str:
        """Return the text of ids with the names of control tokens, for people to read."""
        names = {i: name for name, i in self._encoder.controls.ids.items()}
        parts: list[str] = []
        text: list[int] = []
        for i in map(int, ids):
            if i in names:
                parts += [self.tokenizer.decode(text), names[i].removeprefix(CONTROL_MARK)]
                text = []
            else:
                text.append(i)
        return "".join([*parts, self.tokenizer.decode(text)])

    def response_text(self, ids: Sequence[int]) -> str:
        """Return the text of a response, with the names of control tokens within it; an end token
        at its end is not shown."""
        rest = ids[:-1] if len(ids) and int(ids[-1]) in self.end_ids else ids
        return self.control_text(rest)

    @cached_property
    def unknown_ids(self) -> tuple[int, ...]:
        """Ids of the token for unknown text, which is never sampled; none in most vocabularies."""
        found = self._encoder.controls.ids.get(self._variables.get("unk_token", ""))
        return () if found is None or found in self.end_ids else (found,)

    @cached_property
    def special_ids(self) -> SpecialIds:
        """Ids of pad, start and end of documents for configs. A pad that ends a response is left
        out, because a classifier would read before it."""
        from stages.models.hf_io import SpecialIds

        pad = self.tokenizer.pad_id
        return SpecialIds(
            None if pad == self.end_id else pad, self.tokenizer.bos_id, self.tokenizer.eos_id
        )

    @cached_property
    def padding_token(self) -> tuple[str, int] | None:
        """Name and id of the token that fills rows of texts: the tokenizer's own, else a control
        token with `pad` in its name, which Llama has; None if it would be read as an end."""
        ids, own = self._encoder.controls.ids, self.tokenizer.pad_id
        named = [name for name, i in ids.items() if i == own]
        named += [name for name in ids if "pad" in name.lower()]
        return next(((name, ids[name]) for name in named if ids[name] != self.end_id), None)

    def require_equal(self, other: ChatFormat) -> None:
        """Check that another format encodes every conversation to the same ids.

        Raises:
            InputError: the tokenizers or the templates differ.
        """
        mine, theirs = self.tokenizer, other.tokenizer
        if mine.digest != theirs.digest:
            raise InputError(
                f"the tokenizers differ: {mine.digest[:12]} of {len(mine)} ids in {mine.path}, "
                f"{theirs.digest[:12]} of {len(theirs)} ids in {theirs.path}",
                where=str(theirs.path),
                remedy="use models that were trained with the same tokenizer",
            )
        equal = self.source == other.source and self._variables == other._variables
        if not equal and self._probe() != other._probe():
            raise InputError(
                f"the chat templates of {mine.path} and {theirs.path} differ",
                where=str(theirs.path),
                remedy="use models that were fine-tuned with the same chat template",
            )

    def _probe(self) -> list[list[int]]:
        turns = [Message("user", _QUESTION), Message("assistant", _ANSWER)]
        return [self.encode(turns * count).ids.tolist() for count in (1, 2)]

    def export(self, folder: Path) -> None:
        """Write the template and all ends into a model's folder, for `transformers`."""
        from stages.models.hf_io import write_chat_format

        write_chat_format(folder, self.source, self.end_ids)

    @cached_property
    def _plain_names(self) -> ControlTokens:
        named = self._encoder.controls.ids.items()
        return ControlTokens({name.removeprefix(CONTROL_MARK): i for name, i in named})

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self._encoder.controls.ids.values()) | frozenset(self.end_ids)

    def _hidden(
        self, messages: Sequence[Message], tools: Sequence[Json]
    ) -> tuple[list[Json], str, Sequence[Json]]:
        (rows, hidden_tools), hidden = self._encoder.controls.hide([_rows(messages), list(tools)])
        return rows, hidden, hidden_tools

    def _render(
        self, rows: Sequence[Json], tools: Sequence[Json], *, add_generation_prompt: bool = False
    ) -> Rendering:
        return render_template(
            self.source, rows, tools, add_generation_prompt=add_generation_prompt,
            variables=self._variables,
        )  # fmt: skip

    @cached_property
    def _variables(self) -> Mapping[str, str]:
        return self._encoder.variables()

    def _encode(self, marked: Rendering) -> TokenSpans:
        return self._encoder.encode(marked.text, [at for span in marked.spans for at in span])

    def _spans(
        self,
        messages: Sequence[Message],
        rows: Sequence[Json],
        tools: Sequence[Json],
        rendering: Rendering,
        learned: Sequence[int],
    ) -> Iterator[tuple[int, int]]:
        """Yield the characters of the messages that are learned."""
        if not marks_answers(self.source):
            for i in learned:
                yield self._added_by(i, rows, tools, rendering.text)
            return
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if len(learned) == len(answers):
            yield from rendering.spans
        elif len(rendering.spans) == len(answers):
            yield from (rendering.spans[answers.index(i)] for i in learned)
        else:  # a template with several blocks in a message
            for i in learned:
                before = len(self._render(rows[:i], tools).spans)
                yield from rendering.spans[before : len(self._render(rows[: i + 1], tools).spans)]

    def _added_by(
        self, index: int, rows: Sequence[Json], tools: Sequence[Json], whole: str
    ) -> tuple[int, int]:
        """Return the characters that a message adds to the prompt before it.

        Raises:
            InputError: the renderings of prompt, prompt with message and whole conversation do not
                extend each other.
        """
        prompt = self._render(rows[:index], tools, add_generation_prompt=True).text
        answered = self._render(rows[: index + 1], tools).text
        if not answered.startswith(prompt) or not whole.startswith(answered):
            raise InputError(
                f"the chat template renders message {index + 1} of {len(rows)} otherwise within "
                "the conversation than at its end, so that its tokens cannot be found",
                remedy="put a generation block around the assistant's text in the template, or "
                + _REMEDY,
            )
        added = answered[len(prompt) :]
        end, at = None, 0
        while found := self._encoder.controls.first_in(added[at:]):
            at += found[1]
            end = at
        return len(prompt), len(prompt) + (len(added) if end is None else end)

    def _end_token(self) -> str:
        """Return the name of the token that the template writes after an answer.

        Raises:
            InputError: it writes none.
        """
        rows = _rows([Message("user", _QUESTION), Message("assistant", _ANSWER)])
        text = self._render(rows, ()).text
        after = text[text.rindex(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
        for tokens in (self._encoder.controls, self._encoder.others):
            if found := tokens.first_in(after):
                return found[0]
        raise InputError(
            "the chat template writes no control token after an assistant's text, so that no "
            "response would end",
            where=str(self.tokenizer.path),
            remedy=_REMEDY,
        )


def _rows(messages: Sequence[Message]) -> list[Json]:
    """Return messages as `transformers` takes them; empty fields are left out."""
    rows: list[Json] = []
    for message in messages:
        row: Json = {"role": message.role, "content": message.content}
        if message.name is not None:
            row["name"] = message.name
        if message.tool_calls:
            row["tool_calls"] = list(message.tool_calls)
        rows.append(row)
    return rows


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from () if key == "role" else _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _token_name(encoder: ChatEncoder, variable: str, token: str) -> str:
    """Return a tokenizer's name of a token of a template here."""
    variables = encoder.variables()
    name = encoder.name_of(token)
    if name is not None:
        return name
    if variable == "end":
        return variables["eos_token"]
    return variables.get("bos_token", "") if variable == "start" else token


def _configured_ends(folder: Path, count: int) -> list[int]:
    """Return the ends of a text that the configs of a model's folder name."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        config: dict[str, Any] = read_json(folder / name, {})
        value = config.get("eos_token_id")
        listed = value if isinstance(value, list) else [value]
        found += [i for i in listed if isinstance(i, int) and 0 <= i < count]
    return found
