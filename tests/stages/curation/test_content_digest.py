"""Digests depend on content alone."""

import xxhash

from stages.curation.content_digest import digest_rows, file_digest


def test_digests_are_those_of_all_bytes_and_rows(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == xxhash.xxh3_128_hexdigest(content)
    rows = [("a", "b"), ("c", "\udcff")]
    joined = b"a\0b\nc\0" + "\udcff".encode("utf-8", "surrogatepass") + b"\n"
    assert digest_rows(rows) == xxhash.xxh3_128_hexdigest(joined)
