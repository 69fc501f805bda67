"""The files that document the Python installation."""

from stages.text.python_docs.installed_files import (
    InstalledFile,
    installation_digest,
    installed_files,
    module_name,
)
from stages.text.sources.source_listing import PYTHON_DOCS, content_digest


def test_the_installation_is_listed_fairly_and_once():
    files = installed_files()
    assert len({file.path for file in files}) == len(files) > 500
    kinds = [
        (f.distribution != "python") + (f.distribution != "python" and f.place.endswith(".py"))
        for f in files
    ]
    assert kinds == sorted(kinds) and set(kinds) == {0, 1, 2}
    assert not any(f.distribution.startswith("headwater") for f in files)
    assert not any("/tests/" in f.place or f.place.startswith("..") for f in files)
    first_letters = {f.place[0] for f in files if f.distribution != "python"}
    assert len(first_letters) > 10 and installation_digest() == content_digest(PYTHON_DOCS)


def test_modules_are_named_as_they_are_imported():
    assert module_name("json/decoder.py") == "json.decoder"
    assert module_name("json/__init__.py") == "json"
    file = InstalledFile("x-1", "x/y.py", 1, "/site")
    assert (file.path, file.module) == ("/site/x/y.py", "x.y")


def test_records_are_read_as_they_are_written(tmp_path, monkeypatch):
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_text(
        "../../bin/thing,sha256=aaa,10\nthing/a.py,sha256=bbb,20\r\nthing/a.pyc,,\n"
        "thing/tests/test_a.py,sha256=ccc,30\nthing/b.so,sha256=ddd,40\n"
        "thing-1.0.dist-info/METADATA,sha256=eee,50\nthing-1.0.dist-info/RECORD,,\n"
        "thing-1.0.dist-info/licenses/LICENSE.md,sha256=fff,60\n"
    )
    ours = tmp_path / "headwater-0.1.dist-info"
    ours.mkdir()
    (ours / "RECORD").write_text("headwater/a.py,sha256=bbb,20\n")
    paths = {"stdlib": str(tmp_path / "none"), "purelib": str(tmp_path), "platlib": str(tmp_path)}
    monkeypatch.setattr(
        "stages.text.python_docs.installed_files.sysconfig.get_path", paths.__getitem__
    )
    listing = installed_files.__wrapped__
    assert [(f.place, f.size) for f in listing()] == [
        ("thing-1.0.dist-info/METADATA", 50),
        ("thing/a.py", 20),
    ]
    before = installation_digest()
    record = (info / "RECORD").read_text()
    (info / "RECORD").write_text(record.replace("aaa", "AAA").replace("ddd", "DDD"))
    assert installation_digest() == before  # scripts and libraries differ by environment
    (info / "RECORD").write_text(record.replace("bbb", "BBB"))
    assert installation_digest() != before
