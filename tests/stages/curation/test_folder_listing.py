"""Files of a folder: read, or counted by the reason why they are not."""

import os

import pytest

from stages.curation.folder_listing import LeftOut, describe_left_out, list_folder, list_glob


@pytest.fixture
def folder(tmp_path):
    for name in (
        *("b.txt", "a.TXT", "sub/c.txt", "photo.gif", "table.data.gz", "README", ".hidden.txt"),
        *("__MACOSX/._b.txt", ".git/x.txt", "run/checkpoint-20/log.txt", "_delta_log/0.txt"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "again").symlink_to(tmp_path / "sub")
    os.mkfifo(tmp_path / "pipe.txt")
    return tmp_path


def is_text(name):
    return name.lower().endswith(".txt")


LEFT_OUT = {
    "files .gif": 1,
    "files .data.gz": 1,
    "files without an ending": 1,
    "hidden files": 1,
    "broken links": 1,
    "devices and pipes": 1,
}


def test_every_file_is_listed_or_counted(folder):
    left_out = LeftOut()
    found = list_folder(folder, is_text, left_out)
    assert [path.relative_to(folder).as_posix() for path in found] == [
        "a.TXT",
        "b.txt",
        "sub/c.txt",
    ]
    folders = ("__MACOSX", ".git", "checkpoint-20", "_delta_log")
    assert left_out == LEFT_OUT | {"links to folders": 1} | {
        f"folders named {name}": 1 for name in folders
    }
    assert describe_left_out(LeftOut({"files .gif": 1, "hidden files": 1200})) == (
        "hidden files: 1,200, files .gif: 1"
    )


def test_a_pattern_leaves_out_the_same(folder):
    left_out = LeftOut()
    found = list_glob(folder, "**/*", is_text, left_out)
    assert [path.name for path in found] == ["a.TXT", "b.txt", "c.txt"]
    folders = ("__MACOSX", ".git", "checkpoint-20", "_delta_log")
    assert left_out == LEFT_OUT | {"links to folders": 1} | {
        f"files in folders named {name}": 1 for name in folders
    }
    left_out.clear()
    assert [path.name for path in list_glob(folder, "*.txt", is_text, left_out)] == ["b.txt"]
    list_glob(folder, "s*", is_text, left_out)
    assert left_out["folders that a pattern matches"] == 1
