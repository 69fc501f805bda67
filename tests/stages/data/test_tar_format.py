"""Archives: read as the standard library reads them, and refused where it looks away."""

import io
import re
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data import tar_format

NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1)


def written(path, *members, kind=tarfile.PAX_FORMAT):
    """An archive by the standard library: of `(name, content)` or of `TarInfo`s."""
    with tarfile.open(path, "w", format=kind) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def read(path):
    with path.open("rb") as stream:
        return list(tar_format.read_members(stream.fileno()))


def grouped(path):
    with path.open("rb") as stream:
        return list(tar_format.sample_groups(tar_format.read_members(stream.fileno())))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=4), st.binary(max_size=1200))),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 300),
)
def test_names_and_contents_are_those_of_the_standard_library(tmp_path_factory, files, kind, times):
    path = tmp_path_factory.getbasetemp() / "any.tar"
    members = [("/".join(parts) * (1 + times // 50), content) for parts, content in files]
    members = [(name, content) for name, content in members if ".." not in name.split("/")]
    written(path, *members, kind=kind)
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        wanted = [(i.name, i.offset_data, i.size) for i in archive.getmembers()]
    found = read(path)
    assert [(m.name, m.offset, m.size) for m in found] == wanted
    assert [data[m.offset : m.offset + m.size] for m in found] == [c for _, c in members]


def test_what_follows_an_end_mark_is_not_lost_without_a_word(tmp_path):
    one, two = (written(tmp_path / f"{n}.tar", (f"{n}.jpg", b"1")) for n in "ab")
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(tar_format.BrokenTar, match="more follows the end mark"):
        read(tmp_path / "both.tar")
    holed = bytearray(written(tmp_path / "h.tar", ("a.jpg", b"1"), ("b.jpg", b"2")).read_bytes())
    holed[2 * tar_format.BLOCK : 3 * tar_format.BLOCK] = bytes(tar_format.BLOCK)
    (tmp_path / "h.tar").write_bytes(holed)
    with pytest.raises(tar_format.BrokenTar, match="more follows"):
        read(tmp_path / "h.tar")


def test_hidden_files_do_not_part_a_sample(tmp_path):
    names = ["a.jpg", "._a.txt", "a.txt", "b.jpg", ".DS_Store", "b.txt"]
    path = written(tmp_path / "t.tar", *((name, b"1") for name in names))
    assert [(g.key, sorted(g.members)) for g in grouped(path)] == [
        ("a", ["jpg", "txt"]),
        ("b", ["jpg", "txt"]),
    ]


def test_a_folder_has_no_content_whatever_its_size(tmp_path):
    folder = link("d", tarfile.DIRTYPE)
    folder.size = 4096
    data = (
        folder.tobuf(tarfile.USTAR_FORMAT)
        + tar_format.encode_member("d/a.jpg", b"1")
        + tar_format.END
    )
    (tmp_path / "t.tar").write_bytes(data)
    assert [m.name for m in read(tmp_path / "t.tar")] == ["d/a.jpg"]


def test_a_reader_may_begin_at_any_header(tmp_path):
    names = ["a.jpg", "long" * 60 + ".txt", "b.jpg", "c.jpg"]
    path = written(tmp_path / "t.tar", *((name, name.encode()) for name in names))
    whole = read(path)
    with path.open("rb") as stream:
        parts = [
            *tar_format.read_members(stream.fileno(), 0, whole[1].header),
            *tar_format.read_members(stream.fileno(), whole[1].header, whole[3].header),
            *tar_format.read_members(stream.fileno(), whole[3].header),
        ]
    assert parts == whole and [m.name for m in whole] == names


def link(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (link("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link"),
        (link("a.jpg", tarfile.LNKTYPE, "b.jpg"), "a hard link"),
        (link("a.jpg", tarfile.CHRTYPE), "a device"),
        (link("a.jpg", tarfile.FIFOTYPE), "a pipe"),
        (link("a.jpg", tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (link("a.jpg", b"9"), "of an unknown type"),
        (("/etc/a.jpg", b"x"), "leaves the archive"),
        (("a/../../a.jpg", b"x"), "leaves the archive"),
        (("..\\a.jpg", b"x"), "leaves the archive"),
        (("a\x1b[2J.jpg", b"x"), "leaves the archive"),
    ],
)
def test_what_must_not_be_used_says_why_and_the_rest_is_read(tmp_path, member, problem):
    path = written(tmp_path / "t.tar", ("a.txt", b"1"), member, ("b.jpg", b"2"), kind=0)
    first, bad, last = read(path)
    assert problem in bad.problem and not first.problem and not last.problem
    assert [group.key for group in grouped(path) if not group.problem] == ["a", "b"]


def test_a_sparse_file_in_pax_form_is_one_too(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1000000000000"}
    (found,) = read(written(tmp_path / "t.tar", info))
    assert found.problem == "a sparse file"


def test_folders_hidden_files_and_dots_are_grouped_as_webdataset_does(tmp_path):
    names = ["d.x/", "d.x/a.b.jpg", "d.x/a.TXT", ".hidden.jpg", "README", "e/a.jpg", "a.jpg"]
    members = [
        link(name.rstrip("/"), tarfile.DIRTYPE) if name.endswith("/") else (name, b"1")
        for name in names
    ]
    path = written(tmp_path / "t.tar", *members)
    found = [(group.key, list(group.members)) for group in grouped(path)]
    assert found == [("d.x/a", ["b.jpg", "txt"]), ("e/a", ["jpg"]), ("a", ["jpg"])]
    for name in names[1:]:
        theirs = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)  # webdataset.tariterators
        key, suffix = tar_format._key_and_suffix(name)
        assert (
            theirs.groups() == (key, suffix.upper() if "TXT" in name else suffix)
            if theirs
            else not suffix
        )


def test_a_second_file_of_one_name_is_a_problem_of_its_own(tmp_path):
    path = written(tmp_path / "t.tar", ("a.jpg", b"1"), ("a.jpg", b"2"), ("a.txt", b"3"))
    (twice,) = [group for group in grouped(path) if group.problem]
    (good,) = [group for group in grouped(path) if not group.problem]
    assert twice.problem == "a second file with that name"
    assert list(good.members) == ["jpg", "txt"]


@pytest.mark.parametrize("kept", [512, 611, 612, 1023, 1024, 1100, 1536, 2135, 2136, 2560])
def test_a_cut_archive_gives_what_is_whole_and_then_says_so(tmp_path, kept):
    path = written(tmp_path / "t.tar", ("a.jpg", b"x" * 100), ("b.jpg", b"y" * 600))
    path.write_bytes(path.read_bytes()[:kept])
    seen = []
    with path.open("rb") as stream, pytest.raises(tar_format.BrokenTar, match="truncated"):
        for member in tar_format.read_members(stream.fileno()):
            seen.append(member.name)
    assert seen == ["a.jpg", "b.jpg"][: (kept >= 612) + (kept >= 2136)]


def test_a_damaged_header_is_no_end(tmp_path):
    path = written(tmp_path / "t.tar", *((f"{name}.jpg", b"x") for name in "abc"))
    data = bytearray(path.read_bytes())
    data[1024 + 7] ^= 4
    path.write_bytes(data)
    with tarfile.open(path) as archive:
        assert len(archive.getmembers()) == 1  # the standard library says nothing
    with pytest.raises(tar_format.BrokenTar, match="damaged header at byte 1024"):
        read(path)


@pytest.mark.parametrize(
    "records",
    [b"999 path=x", b"x path=y\n", b"8 path=ab\n", b"0 path=x\n", b"7 path\n", b"10 size=-1\n"],
)
def test_hostile_pax_records_end_the_reading(tmp_path, records):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    body = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    (tmp_path / "t.tar").write_bytes(
        body + tar_format.encode_member("a.jpg", b"1") + tar_format.END
    )
    with pytest.raises(tar_format.BrokenTar):
        read(tmp_path / "t.tar")


def test_a_name_of_gigabytes_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with (tmp_path / "t.tar").open("wb") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.truncate(1 << 34)  # a sparse file: takes no disk
    with pytest.raises(tar_format.BrokenTar, match="a name of 8589934592 bytes"):
        read(tmp_path / "t.tar")
