"""Tables of strangers: lines that are understood, lines that are not, and bytes that are anything."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Invalid
from shared.tables import Line, lines, table_name, tells


def said(name: str, text: str) -> list[dict[str, str]]:
    return [line.said for line in lines(name, text.encode())]


def test_a_csv_is_read_with_each_delimiter_with_a_mark_at_its_beginning_and_each_end_of_line():
    for delimiter in ",;\t":
        for end in ("\n", "\r\n"):
            text = "\ufeff" + end.join([delimiter.join(["Path", "Label", "other"]), delimiter.join(["a.jpg", '"cat"', "x"]), "", ""])
            assert said("labels.csv", text) == [{"file": "a.jpg", "label": "cat", "split": ""}]


def test_a_value_may_hold_the_delimiter_and_ends_of_lines():
    assert said("labels.csv", 'path,label,title\n"a,b.jpg",cat,"two\nlines"\n')[0] == {
        "file": "a,b.jpg",
        "label": "cat",
        "name": "two lines",
        "split": "",
    }


def test_what_was_defused_for_a_spreadsheet_is_read_as_it_was():
    assert [each["label"] for each in said("labels.csv", "path,label\na,'=1\nb,''=1\nc,'quoted'\n")] == ["=1", "'=1", "'quoted'"]


def test_addresses_that_are_none_are_left_out():
    row = said("labels.csv", "url,label,page_url,licence_url\nhttps://a.org/1.jpg,x,javascript:alert(1),http://a b\n")[0]
    assert row == {"url": "https://a.org/1.jpg", "label": "x", "page_url": "", "licence_url": "", "split": ""}


def test_a_line_of_json_may_hold_other_ends_of_lines():
    text = json.dumps({"file": "a.jpg", "label": "x\u2028y", "attribution": "by\u2028Ann\u202e"}, ensure_ascii=False)
    (line,) = lines("darkroom.jsonl", text.encode())
    assert line == Line(1, {"file": "a.jpg", "label": "x\u2028y", "attribution": "by Ann", "split": ""})


def test_lines_are_numbered_as_an_editor_numbers_them():
    assert [line.number for line in lines("metadata.jsonl", b'{"file": "a"}\n\n\n{"file": "b"}')] == [1, 4]
    assert [line.number for line in lines("labels.csv", b"path,label\na,x\n\nb,x\n")] == [2, 4]


def test_which_files_are_tables():
    tables = ["darkroom.jsonl", "Metadata.JSONL", "metadata.csv", "labels.csv", "classes.json", "anything.CSV"]
    assert [name for name in [*tables, "ATTRIBUTION.csv", "other.jsonl", "tasks.json", "a.jpg", ".csv.jpg"] if table_name(name)] == tables
    assert tells(b"filename;class\n")
    assert not tells(b"filename;size\n")


@pytest.mark.parametrize("name", ["labels.csv", "metadata.jsonl"])
@given(
    data=st.one_of(
        st.binary(max_size=400), st.text(max_size=200).map(str.encode), st.text('{}[]":,0123456789efil\\n ', max_size=300).map(str.encode)
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_the_bytes_are_there_is_a_line_or_a_sentence(name, data):
    data = b"path,label\n" + data if name == "labels.csv" else data
    with suppress(Invalid):
        for line in lines(name, data):
            assert bool(line.wrong) != bool(line.said)
            "".join(text for key, text in line.said.items() if key not in {"file", "label"}).encode()
