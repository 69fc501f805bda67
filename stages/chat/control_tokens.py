"""Encoding of rendered chats: control tokens of the template become ids, text of messages never.

    message   </s> ends a text
    rendered  <s><|user|><⁞/s> ends a text       hidden: ⁞ breaks what the message spells
    marked    ◆<s>◆<|user|></s> ends a text      control tokens have the mark ◆

A message that spells a control token is broken by a character that no message contains before it is
rendered. What is whole in the rendered text was written by the template: it gets `MARK`, a
noncharacter of Unicode, before its name, and the broken ones are repaired. The encoders know the
marked names only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from pipeline.atomic_io import read_json
from stages.chat.template_rendering import Rendering
from stages.data.formats.surrogates import replace_surrogates
from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer, HuggingFaceTokenizer
from stages.data.tokenizers.sentencepiece_tokenizer import CONTROL_MARK, FIRST_BYTE, Tokenizer

MARK = "\ufdd1"
"""First character of the names of control tokens that a template wrote."""
REPLACEMENT = "\ufffd"
_PRIVATE = range(0xF0000, 0xFFFFE)
"""Characters that hide control tokens: a private plane of Unicode."""
_SPECIAL_NAMES = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


class TokenSpans(NamedTuple):
    """Ids with the characters that each stands for, as far as the spans need them."""

    ids: list[int]
    starts: list[int]
    ends: list[int]

    def inside(self, spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        """Return a mask of the tokens that stand for characters of the spans."""
        starts, ends = np.array(self.starts, np.int64), np.array(self.ends, np.int64)
        found = np.zeros(len(self.ids), np.bool_)
        for first, last in spans:
            found |= (starts < last) & (ends > first)
        return found


@dataclass(frozen=True)
class ControlTokens:
    """Names of control tokens as a template writes them, with their ids."""

    ids: Mapping[str, int]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def spelled(self, text: str) -> list[str]:
        """Return the control tokens that a text spells, in order."""
        return self._pattern.findall(text)

    def first_in(self, text: str) -> tuple[str, int] | None:
        """Return the first control token that a text spells, and the place behind it."""
        found = self._pattern.search(text)
        return (found[0], found.end()) if found else None

    def hide(self, value: Any) -> tuple[Any, str]:
        """Return messages or tools that spell no control token, and the character that breaks
        them; none if nothing had to be broken."""
        texts: list[str] = []
        _collect(value, texts)
        joined = "\0".join(texts)
        if not self._pattern.search(joined):
            return value, ""
        character = next(chr(code) for code in _PRIVATE if chr(code) not in joined)
        return _replaced(value, lambda text: self._broken(text, character)), character

    def _broken(self, text: str, character: str) -> str:
        marked = re.compile(f"{MARK}(?={self._pattern.pattern})")
        text = marked.sub(REPLACEMENT, text)
        while self._pattern.search(text):  # a rest may spell another
            text = self._pattern.sub(lambda found: f"{found[0][0]}{character}{found[0][1:]}", text)
        return text

    def mark(self, rendering: Rendering, hidden: str) -> Rendering:
        """Return a rendering with marked control tokens and repaired messages."""
        text = rendering.text
        cuts = sorted({0, len(text), *(place for span in rendering.spans for place in span)})
        parts = [text[a:b] for a, b in pairwise(cuts)]
        marked = [self._pattern.sub(rf"{MARK}\g<0>", part) for part in parts]
        whole = [part.replace(hidden, "") if hidden else part for part in marked]
        moved = dict(zip(cuts, accumulate(map(len, whole), initial=0), strict=True))
        spans = tuple((moved[a], moved[b]) for a, b in rendering.spans)
        return Rendering("".join(whole), spans)


def _collect(value: Any, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            texts.append(str(key))
            _collect(each, texts)
    elif isinstance(value, list | tuple):
        for each in value:
            _collect(each, texts)


def _replaced(value: Any, replace: Any) -> Any:
    """Return a copy with all texts replaced, keys included, but roles."""
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, Mapping):
        return {
            replace(str(key)): each if key == "role" else _replaced(each, replace)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_replaced(each, replace) for each in value]
    return value


class SentencePieceChat:
    """Encoder of marked texts by a Headwater tokenizer: text between control tokens is encoded
    piece by piece, as the exported `tokenizer.json` does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        exported: dict[str, Any] = read_json(tokenizer.path / "tokenizer.json", {})
        added = exported.get("added_tokens", [])
        names = {token["content"]: token["id"] for token in added if token["special"]}
        pieces = tokenizer.pieces[:FIRST_BYTE]
        self.controls = ControlTokens(
            names or {CONTROL_MARK + piece: i for i, piece in enumerate(pieces)}
        )
        marked = sorted((MARK + name for name in self.controls.ids), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, marked))})")
        self.others = ControlTokens({})

    def name_of(self, token: str) -> str | None:
        """Return the name that templates use for a control token; None if there is no such one."""
        names = (CONTROL_MARK + token, token)
        return next((name for name in names if name in self.controls.ids), None)

    def variables(self) -> dict[str, str]:
        """Return the special tokens that templates may use."""
        names = {i: name for name, i in self.controls.ids.items()}
        return {f"{key}_token": names[i] for i, key in enumerate(("pad", "unk", "bos", "eos"))}

    def encode(self, text: str, cuts: Sequence[int]) -> TokenSpans:
        """Return the ids; places of characters are exact within texts that a cut divides."""
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        for part in self._split.split(text):
            if part.startswith(MARK) and (control := self.controls.ids.get(part[1:])) is not None:
                found = TokenSpans([control], [at], [at + len(part)])
            elif any(at < cut < at + len(part) for cut in cuts):
                found = self._exact(part, at)
            else:
                piece = self.tokenizer.encode(part) if part else []
                found = TokenSpans(piece, [at] * len(piece), [at + len(part)] * len(piece))
            ids += found.ids
            starts += found.starts
            ends += found.ends
            at += len(part)
        return TokenSpans(ids, starts, ends)

    def _exact(self, text: str, at: int) -> TokenSpans:
        ids, starts, ends = self.tokenizer.encode_with_places(text)
        return TokenSpans(ids, [at + a for a in starts], [at + b for b in ends])


class FastChat:
    """Encoder of marked texts by a `tokenizer.json`, whose control tokens have the marked names."""

    def __init__(self, tokenizer: HuggingFaceTokenizer, further: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        layout = json.loads((tokenizer.path / "tokenizer.json").read_bytes())
        added = sorted(layout.get("added_tokens", []), key=lambda token: token["id"])
        controls = [
            t for t in added if len(t["content"]) > 1 and (t["special"] or t["content"] in further)
        ]
        self.controls = ControlTokens({token["content"]: token["id"] for token in controls})
        self.others = ControlTokens(
            {t["content"]: t["id"] for t in added if t["content"] not in self.controls.ids}
        )
        self._added = added
        # Its post-processor only adds control tokens and takes spaces from the places of tokens.
        self._fast = FastTokenizer.from_str(
            json.dumps(layout | {"added_tokens": [], "post_processor": None})
        )
        self._fast.no_padding()
        self._fast.no_truncation()
        self._ids = self._add_tokens()

    def name_of(self, token: str) -> str | None:
        """Return the name of a control token; None if there is no such one."""
        return token if token in self.controls.ids else None

    def _add_tokens(self) -> dict[int, int]:
        """Add the added tokens, control tokens by their marked names; return the ids of `encode`
        where those of the tokenizer differ."""
        ids: dict[int | None, int] = {}
        for token in self._added:
            name, control = token["content"], token["content"] in self.controls.ids
            flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized")}
            marked = MARK + name if control else name
            self._fast.add_tokens([AddedToken(marked, **flags, special=False)])
            ids[self._fast.token_to_id(marked)] = token["id"]
        return {here: there for here, there in ids.items() if here is not None and here != there}

    def variables(self) -> dict[str, str]:
        """Return the special tokens that templates may use: those of `tokenizer_config.json`, start
        and end also of `config.json`."""
        config: dict[str, Any] = read_json(self.tokenizer.path / "tokenizer_config.json", {})
        found: dict[str, str] = {}
        for key in _SPECIAL_NAMES:
            value = config.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[key] = value
        names = {i: name for name, i in self.controls.ids.items()}
        for key, i in (("bos_token", self.tokenizer.bos_id), ("eos_token", self.tokenizer.eos_id)):
            if key not in found and i in names:
                found[key] = names[i]
        return found

    def encode(self, text: str, cuts: Sequence[int]) -> TokenSpans:
        """Return the ids and the characters that each stands for. A token reaches from the end of
        the one before; those of one character share it."""
        found = self._fast.encode(replace_surrogates(text), add_special_tokens=False)
        ids = [self._ids.get(i, i) for i in found.ids]
        starts, ends, before = [], [], 0
        for start, end in found.offsets:
            starts.append(min(start, before))
            ends.append(end)
            before = max(before, end)
        return TokenSpans(ids, starts, ends)


ChatEncoder = SentencePieceChat | FastChat


def chat_encoder(tokenizer: AnyTokenizer) -> ChatEncoder:
    """Return the encoder of marked texts by a tokenizer."""
    return SentencePieceChat(tokenizer) if isinstance(tokenizer, Tokenizer) else FastChat(tokenizer)
