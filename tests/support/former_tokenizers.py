"""Tokenizer folders as earlier versions wrote them: U+2581 of the text is a space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.data.tokenizers.sentencepiece_tokenizer import (
    CHUNK_PATTERN_KEY,
    SPACE,
    SPACE_AS_BYTES_KEY,
)

REPLACE_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
RESTORE_SPACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}


def marked(text: str) -> str:
    """Return the text with U+2581 for spaces."""
    return text.replace(" ", SPACE)


def rewrite_as_former(folder: Path) -> None:
    """Rewrite the files of a tokenizer that was just exported."""
    path = folder / "tokenizer.json"
    fast: dict[str, Any] = json.loads(path.read_text())
    model = fast["model"]
    if model["type"] == "BPE":
        model["vocab"] = {marked(piece): i for piece, i in model["vocab"].items()}
        model["merges"] = [[marked(left), marked(right)] for left, right in model["merges"]]
    else:
        model["vocab"] = [[marked(piece), score] for piece, score in model["vocab"]]
    fast["normalizer"] = REPLACE_SPACE
    fast["decoder"]["decoders"].insert(0, RESTORE_SPACE)
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    del config[SPACE_AS_BYTES_KEY]
    if CHUNK_PATTERN_KEY in config:
        config[CHUNK_PATTERN_KEY] = marked(config[CHUNK_PATTERN_KEY])
        fast["pre_tokenizer"]["pattern"] = {"Regex": config[CHUNK_PATTERN_KEY]}
    path.write_text(json.dumps(fast))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
