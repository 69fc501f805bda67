"""Texts that spell a control token of a chat format.

They are kept and counted: encoding here never makes a control token of a message, while other
programs that read the same file may.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORDS = (
    "begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id|python_tag|im_start|"
    "im_end|im_sep|endoftext|endofprompt|system|user|assistant|tool|end|start|message|channel|pad|"
    "reserved_\\d+|reserved_special_token_\\d+"
)
_CONTROL = re.compile(
    rf"<\|(?:{_WORDS})\|>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn|turn)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|<\N{FULLWIDTH VERTICAL LINE}[^\s<>]{1,40}\N{FULLWIDTH VERTICAL LINE}>"
)


def control_tokens(texts: Iterable[str]) -> list[str]:
    """Return the control tokens that texts spell, each once, in order."""
    found = (token for text in texts for token in _CONTROL.findall(text))
    return list(dict.fromkeys(found))
