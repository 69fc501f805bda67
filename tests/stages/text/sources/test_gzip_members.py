"""Damaged gzip files: what precedes the damage, and the members behind it."""

import gzip
import io
import random
import zlib

import pytest

from stages.text.sources.gzip_members import GzipMembers


def lines(start, stop):
    chance = random.Random(start)
    return [b"%d %032x\n" % (number, chance.getrandbits(128)) for number in range(start, stop)]


def read_lines(data):
    """The lines that can be read, and the error at the end."""
    found = []
    try:
        for line in io.BufferedReader(GzipMembers(io.BytesIO(data))):
            found.append(line)
    except (zlib.error, EOFError) as error:
        return found, error
    return found, None


@pytest.mark.parametrize("padding", [b"", b"\0" * 700])
def test_whole_files_of_any_number_of_members(padding):
    members = [gzip.compress(b"".join(lines(n, n + 50 * n))) for n in (0, 1, 40, 900)]
    found, error = read_lines(b"".join(member + padding for member in members))
    assert error is None
    assert found == [line for n in (0, 1, 40, 900) for line in lines(n, n + 50 * n)]
    assert read_lines(b"") == ([], None)


def decodable(data):
    """The whole lines that precede the damage, decompressed byte by byte."""
    member, found = zlib.decompressobj(31), b""
    try:
        for at in range(len(data)):
            found += member.decompress(data[at : at + 1])
    except zlib.error:
        pass
    return found[: found.rfind(b"\n") + 1].splitlines(keepends=True)


@pytest.mark.parametrize("seed", range(8))
def test_all_that_precedes_the_damage_is_read(seed):
    chance = random.Random(seed)
    data = bytearray(gzip.compress(b"".join(lines(0, 3000))))
    at = chance.randrange(2000, len(data) - 100)
    data[at : at + 40] = chance.randbytes(40)
    found, error = read_lines(bytes(data))
    assert isinstance(error, zlib.error) and found == decodable(bytes(data))
    whole = read_lines(bytes(data[:at]))
    assert isinstance(whole[1], EOFError) and whole[0] == lines(0, 3000)[: len(whole[0])]
    assert len(whole[0]) > 3000 * at / len(data) * 0.9 - 60


@pytest.mark.parametrize("seed", range(8))
def test_the_members_behind_the_damage_are_read(seed):
    chance = random.Random(seed)
    parts = [lines(n * 300, n * 300 + 300) for n in range(6)]
    members = [bytearray(gzip.compress(b"".join(part))) for part in parts]
    damaged = chance.randrange(6)
    at = chance.randrange(len(members[damaged]) - 8)
    members[damaged][at : at + 5] = chance.randbytes(5)
    found, error = read_lines(b"".join(members))
    assert isinstance(error, zlib.error)
    text = b"".join(found)
    for number, part in enumerate(parts):
        assert number == damaged or b"".join(part) in text


@pytest.mark.parametrize("data", [b"no gzip at all", b"\x1f\x8b\x08", b"\x1f\x8b\x08" * 20])
def test_what_is_not_gzip_is_an_error(data):
    assert read_lines(data)[1] is not None
