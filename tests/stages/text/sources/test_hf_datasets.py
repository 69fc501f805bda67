"""Hugging Face datasets as sources, and the fields that go along with a text."""

import gzip
import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
from stages.curation.broken_files import BrokenFile
from stages.data.documents import Documents, read_stats
from stages.text.decontamination.ngram_index import read_evaluation_sets
from stages.text.sources import source_listing
from stages.text.sources.readers import read
from stages.text.sources.source_listing import SourceFile, content_digest, list_files, make_shards

TEXTS = [f"number {i} of the texts" if i != 5 else None for i in range(12)]
TABLE = {"text": TEXTS, "url": [f"https://host/{i}" for i in range(12)], "score": [0.5] * 12}


def save(folder):
    datasets.Dataset.from_dict(TABLE).save_to_disk(folder)


def save_splits(folder):
    table = datasets.Dataset.from_dict(TABLE)
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(folder)


def write_parquet(folder):
    folder.mkdir()
    for number in range(2):
        part = pa.table(TABLE).slice(6 * number, 6)
        pq.write_table(part, folder / f"train-{number:05d}-of-00002.parquet")


def write_json(folder):
    folder.mkdir()
    rows = pa.table(TABLE).to_pylist()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


KINDS = pytest.mark.parametrize("write", [save, save_splits, write_parquet, write_json])


def documents(source, *options):
    return [
        (file.source, file.place, raw)
        for files in make_shards(list_files([source]))
        for file in files
        for raw in read(file, *options)
    ]


@KINDS
def test_folders_are_read_as_datasets(tmp_path, monkeypatch, write):
    write(tmp_path / "news")
    source = f"hf:{tmp_path / 'news'}"
    found = documents(source, "text", ("url", "score", "absent"))
    assert [raw.text for _, _, raw in found] == [text or "" for text in TEXTS]
    assert [raw.broken for _, _, raw in found if raw.broken] == ["broken.text_column"]
    assert found[3][2].meta["url"] == "https://host/3" and found[3][2].meta["score"] == 0.5
    assert "absent" not in found[3][2].meta
    assert {name for name, _, _ in found} == {"news"}
    assert not any(str(tmp_path) in place for _, place, _ in found)
    places = {(place, raw.meta["row"]) for _, place, raw in found}
    assert len(places) == 12
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 100)
    assert documents(source, "text", ("url", "score")) == found
    with pytest.raises(InputError, match="no column 'body'") as caught:
        documents(source, "body")
    assert "text" in caught.value.remedy


@KINDS
def test_content_decides_what_a_folder_is(tmp_path, write):
    write(tmp_path / "news")
    before = content_digest(f"hf:{tmp_path / 'news'}")
    (tmp_path / "moved").mkdir()
    (tmp_path / "news").rename(tmp_path / "moved" / "news")
    moved = f"hf:{tmp_path / 'moved' / 'news'}"
    assert content_digest(moved) == before
    files = [path for path in sorted((tmp_path / "moved").rglob("*")) if path.is_file()]
    data = [p for p in files if p.suffix == ".arrow" or p.name.startswith("train")][-1]
    data.write_bytes(data.read_bytes() + b"\n")
    assert content_digest(moved) != before


def test_splits_are_chosen(tmp_path):
    save_splits(tmp_path / "news")
    assert len(documents(f"hf:{tmp_path / 'news'}?split=test")) == 2
    with pytest.raises(InputError, match="no split 'dev'") as caught:
        content_digest(f"hf:{tmp_path / 'news'}?split=dev")
    assert "test, train" in caught.value.remedy


@pytest.mark.parametrize(
    "source", ["hf:", "hf:a/b?splt=train", "hf:a/b?split=", "hf:no/such/folder", "hf:./none"]
)
def test_other_forms_are_refused(source):
    with pytest.raises(InputError) as caught:
        list_files([source])
    assert "hf:NAME" in caught.value.remedy


@pytest.mark.parametrize("offline", ["0", "1"])
@pytest.mark.parametrize("name", ["hf:org/name", "hf:org/name@v1", f"hf:org/name@{'a' * 40}"])
def test_an_unreachable_hub_is_reported(tmp_path, name, offline):
    code = (
        "import sys; from stages.text.sources.source_listing import list_files\n"
        "from pipeline.errors import InputError\n"
        "try: list_files([sys.argv[1]])\n"
        "except InputError as error: print(error, '|', error.remedy)"
    )
    settings = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env={**os.environ, **settings, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "org/name" in done.stdout and "cannot be read" in done.stdout, done.stderr[-2000:]
    assert "the hub must be reachable" in done.stdout


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl", "parquet"])
def test_damaged_files_of_a_dataset_stop_nothing(tmp_path, suffix):
    (tmp_path / "news").mkdir()
    texts = [f"the text of number {i}" for i in range(9000)]
    for name in ("train-0", "train-1"):
        path = tmp_path / "news" / f"{name}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table({"text": texts}), path)
        else:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            path.write_bytes((gzip.compress if "gz" in suffix else bytes)(lines.encode()))
    path.write_bytes(path.read_bytes()[:-100])
    good, damaged = list_files([f"hf:{tmp_path / 'news'}"])
    assert len(list(read(good))) == 9000
    with pytest.raises(BrokenFile):
        list(read(damaged))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_other_fields_go_along(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    table = pa.table(
        {"text": ["one", "two"], "url": ["u1", None], "at": [1, 2], "more": ["x", "y"]}
    )
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        path.write_text("text,url,at,more\none,u1,1,x\ntwo,,2,y\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    file = SourceFile("test", path.name, str(path), path.stat().st_size)
    first, second = (raw.meta for raw in read(file, "text", ("url", "at", "absent")))
    assert first["url"] == "u1" and str(first["at"]) == "1"
    assert not second.get("url") and not {"absent", "more", "text"} & (first | second).keys()
    assert len(first) == 3


def test_lists_see_the_urls_of_datasets(tmp_path):
    save(tmp_path / "news")
    (tmp_path / "urls.txt").write_text("https://host/3\n")
    ctx = Context.local(tmp_path / "w")
    params = CleanParams(
        sources=(f"hf:{tmp_path / 'news'}",),
        rules=("lists",),
        lists={"urls": str(tmp_path / "urls.txt")},
        meta_columns=("url",),
        dedup={"near": False},
    )
    clean(params, Inputs({"dedup_against": []}), ctx.out, ctx)
    kept = [json.loads(document.meta)["url"] for document in Documents(ctx.out)]
    assert len(kept) == 10 and "https://host/3" not in kept
    assert read_stats(ctx.out)["by_rule"]["broken.text_column"]["documents"] == 1


def test_evaluation_sets_are_datasets_too(tmp_path, monkeypatch):
    text = "Which of the eight words is the one that was never asked for {}?"
    rows = {"question": [text.format(number) for number in range(6)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "quiz")
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 100)
    evaluation = read_evaluation_sets([f"hf:{tmp_path / 'quiz'}"], ["question"], 13)
    places = [item.place for item in evaluation.items]
    assert places == [f"train {number} question" for number in range(1, 7)]


def test_fields_that_say_where_a_record_was_are_taken():
    params = CleanParams(sources=("a",), meta_columns=("url", "line", "text"))
    assert [problem.key for problem in params.check({})] == ["meta_columns", "meta_columns"]
