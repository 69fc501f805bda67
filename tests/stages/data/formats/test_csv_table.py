"""A row with a bad quote costs itself, and no other one."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.formats import csv_table
from stages.data.formats.csv_table import CsvTable

FIELDS = st.text(alphabet='ab",\n\r é', max_size=6)


def rows(text, delimiter=","):
    return list(CsvTable(io.StringIO(text, newline=""), delimiter))


def values(text):
    return [row.values for row in rows(text) if not row.broken]


@given(st.lists(st.tuples(FIELDS, FIELDS, FIELDS)), st.sampled_from([",", "\t"]))
def test_what_a_writer_wrote_is_read(table, delimiter):
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows([("a", "b", "c"), *table])
    found = rows(stream.getvalue(), delimiter)
    assert [tuple(row.values) for row in found] == table
    assert not any(row.broken for row in found)
    assert [row.line for row in found] == sorted({row.line for row in found})


@pytest.mark.parametrize(
    "behind",
    [
        "3,three,z\n4,four,z\n",
        '3,"three, in quotes",z\n4,"over\ntwo lines",z\n5,five,z\n',
        '3,three,z\n4,"",z\n5,"he said ""no""",z\n',
    ],
)
def test_an_open_quote_costs_its_row(behind):
    found = rows('id,text,x\n1,one,z\n2,"two,z\n' + behind)
    assert [row.line for row in found if row.broken] == [3]
    assert next(row.raw for row in found if row.broken) == '2,"two,z\n'
    behind_rows = list(csv.reader(io.StringIO(behind, newline="")))
    assert [row.values for row in found if not row.broken] == [["1", "one", "z"], *behind_rows]


def test_lines_that_are_no_rows_go_with_the_open_quote():
    prose = "".join(f"line {n} of a text, which has a comma\nand one without\n" for n in range(9))
    found = rows('id,text,x\n1,one,z\n2,"two\n' + prose)
    assert [row.values for row in found] == [["1", "one", "z"], []]
    assert found[1].raw == '2,"two\n' + prose


def test_quotes_within_a_field_need_not_be_doubled():
    assert values('id,text\n1,"he said "yes" to it"\n2,b\n') == [
        ["1", 'he said yes" to it"'],
        ["2", "b"],
    ]


def test_rows_of_another_length():
    found = rows("a,b,c\n1,2,3\n1,2\n1,2,3,4\n\n1,2")
    assert [(row.line, row.values, bool(row.broken)) for row in found] == [
        (2, ["1", "2", "3"], False),
        (3, ["1", "2"], False),
        (4, [], True),
        (6, [], True),
    ]


def test_a_field_without_end_is_an_open_quote(monkeypatch):
    monkeypatch.setattr(csv_table, "MAX_FIELD", 1000)
    lines = "".join(f"{n},row\n" for n in range(400))
    found = rows('id,text\n0,"open\n' + lines)
    assert [row.line for row in found if row.broken] == [2] and len(found) == 401
    (broken,) = rows("id,text\n1," + "x" * 2000 + "\n")
    assert "field larger than" in broken.broken


@pytest.mark.parametrize("text", ["", "\n\n", "id,text\n", "id,text"])
def test_a_table_without_rows(text):
    assert rows(text) == []
