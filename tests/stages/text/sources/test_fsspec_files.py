"""Sources behind URLs: listed, identified and read like local ones, without revealing secrets."""

import functools
import gzip
import http.server
import json
import sys
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
from stages.curation.broken_files import BrokenFile
from stages.data.documents import Documents, read_stats
from stages.text.sources import source_listing
from stages.text.sources.fsspec_files import contains_secret, redact_urls
from stages.text.sources.readers import read
from stages.text.sources.source_listing import content_digest, list_files

LINES = b"".join(b'{"text": "number %d of the corpus"}\n' % i for i in range(2000))


@pytest.fixture
def memory():
    storage = fsspec.filesystem("memory")
    yield storage
    storage.store.clear()
    storage.pseudo_dirs[:] = [""]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (folder / "sub" / "c.jsonl.zst").write_bytes(zstandard.compress(LINES))
    (folder / "d.txt").write_text("naïve")
    pq.write_table(
        pa.table({"text": ["one", "two", "three"]}), folder / "e.parquet", row_group_size=1
    )
    (folder / "f.csv").write_text("text\none\n")
    (folder / "picture.png").write_bytes(b"")
    return folder


def uploaded(corpus, memory, place="/bucket/corpus"):
    memory.put(str(corpus), place, recursive=True)
    return f"memory:/{place}"


def found(source):
    return [(f.source, f.place, f.size) for f in list_files([source])]


def documents(source):
    return [
        (f.place, raw)
        for shard in source_listing.make_shards(list_files([source]))
        for f in shard
        for raw in read(f)
    ]


def test_a_url_is_read_as_a_folder_is(corpus, memory, monkeypatch):
    url = uploaded(corpus, memory)
    assert found(url) == found(f"{url}/") == found(f"file://{corpus}") == found(str(corpus))
    assert documents(url) == documents(str(corpus)) and len(documents(url)) == 6005
    assert content_digest(url) == content_digest(f"file://{corpus}") == content_digest(str(corpus))
    assert found(f"{url}/*.jsonl") == [("corpus", "a.jsonl", len(LINES))]
    assert [place for _, place, _ in found(f"{url}/**/*.zst")] == ["sub/c.jsonl.zst"]
    assert found(f"{url}/d.txt") == [("corpus", "d.txt", 6)]
    whole = documents(str(corpus))
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 10_000)
    assert len(source_listing.make_shards(list_files([url]))) > 5 and documents(url) == whole


def test_content_decides(corpus, memory):
    url = uploaded(corpus, memory)
    before = content_digest(url)
    assert content_digest(uploaded(corpus, memory, "/elsewhere/corpus")) == before
    memory.pipe("/bucket/corpus/d.txt", b"other")
    assert content_digest(url) != before


def test_a_damaged_file_gives_what_it_holds(memory, tmp_path):
    memory.pipe("/b/cut.jsonl.gz", gzip.compress(LINES)[:-2000])
    memory.pipe("/b/good.jsonl", LINES)
    memory.pipe("/b/none.parquet", b"PAR1 not really")
    held = []
    with pytest.raises(BrokenFile, match="ended before"):
        held.extend(raw for raw in read(list_files(["memory://b/cut.jsonl.gz"])[0]))
    assert held
    ctx = Context.local(tmp_path)
    lax = {"limits": {"length": {"characters": [1, None]}}, "rules": ("length",)}
    clean(CleanParams(sources=("memory://b",), **lax), Inputs({"dedup_against": []}), ctx.out, ctx)
    assert read_stats(ctx.out)["by_rule"]["broken.file"]["documents"] == 2
    assert (
        "cut.jsonl.gz: cannot read the source: Compressed file"
        in (ctx.attempt_dir / "log.txt").read_text()
    )
    assert json.loads(next(iter(Documents(ctx.out))).meta)["place"] == "cut.jsonl.gz"


@pytest.mark.parametrize(
    ("source", "message", "remedy"),
    [
        ("memory://none", "does not exist", "check the URL"),
        ("memory://none/*.csv", "no readable file", ".jsonl"),
        ("nosuch://user:secret@x/y", "package", "known protocols"),
        ("https://me:secret@127.0.0.1:1/a.jsonl?sig=secret", "cannot read|does not exist", "check"),
    ],
)
def test_what_cannot_be_read_is_said(memory, source, message, remedy):
    with pytest.raises(InputError, match=message) as caught:
        content_digest(source)
    assert remedy in caught.value.remedy and caught.value.exit_code == 2
    assert "secret" not in f"{caught.value} {caught.value.remedy}"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match="needs a package") as caught:
        list_files(["s3://bucket/x"])
    assert "s3fs" in caught.value.remedy


class Signed(http.server.SimpleHTTPRequestHandler):
    """Serves what is asked for with a signature; no ranges, like many a server."""

    def do_GET(self):
        self.check(super().do_GET)

    def do_HEAD(self):
        self.check(super().do_HEAD)

    def check(self, serve):
        return serve() if "sig=hush" in self.path else self.send_error(403, "not with " + self.path)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(corpus):
    serving = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Signed, directory=str(corpus))
    )
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "d.txt", "e.parquet", "f.csv"])
def test_web_servers_and_signatures(corpus, server, monkeypatch, name):
    monkeypatch.setenv("SIGNATURE", "hush")
    url = f"{server}/{name}?sig=${{env:SIGNATURE}}"
    (file,) = list_files([url])
    assert (
        file.place == name and "hush" not in file.display_path and file.display_path.endswith(name)
    )
    assert list(read(file)) == list(read(list_files([str(corpus / name)])[0]))
    assert content_digest(url)
    with pytest.raises(InputError, match=r"no permission to read|does not exist") as caught:
        content_digest(f"{server}/{name}?sig=wrong")
    assert "wrong" not in str(caught.value)


def test_secrets_are_named_and_not_written():
    assert contains_secret("https://me:pass@host/a.jsonl")
    assert contains_secret("https://host/a.jsonl?X-Amz-Signature=abc")
    assert not contains_secret("https://me:${env:PASSWORD}@host/a.jsonl?sig=${env:SIG}")
    assert not contains_secret("https://host/a.jsonl?download=true")
    redacted = redact_urls("403, url='https://me:p@ss@host/a.jsonl?sig=abc' and s3://b/c#d")
    assert redacted == "403, url='https://host/a.jsonl' and s3://b/c"
    problems = CleanParams(sources=("https://a:b@host/x.txt",)).check({})
    assert [problem.key for problem in problems] == ["sources"]
