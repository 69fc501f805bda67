"""A tokenizer trained once a session on the documentation of this Python's standard library."""

from pathlib import Path

import pytest

from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.data.tokenizers.tokenizer_training import (
    export_tokenizer,
    split_lines,
    train_sentencepiece,
)
from stages.text.python_docs.docstrings import documented_objects, module_documents
from stages.text.python_docs.installed_files import installed_files


@pytest.fixture(scope="session")
def real_documents():
    """Ten thousand that differ: modules' documents, docstrings and their paragraphs."""
    texts: dict[str, None] = {}
    for file in (file for file in installed_files() if file.place.endswith(".py")):
        objects = documented_objects(Path(file.path).read_bytes(), file.module)
        parts = [part for item in objects for part in (item.doc, *item.doc.split("\n\n"))]
        texts |= dict.fromkeys(t for t in (*module_documents(objects), *parts) if len(t) >= 40)
        if len(texts) >= 10_000:
            break
    return list(texts)[:10_000]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, real_documents):
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = (line for text in real_documents[:1500] for line in split_lines(text))
    export_tokenizer(train_sentencepiece(lines, 2000), folder, model_max_length=256)
    return Tokenizer(folder)
