"""The page that the benchmarks write keeps what others have written on it."""

from benchmarks._system import table, write_section


def test_a_section_is_added_and_replaced_and_leaves_the_others_alone(tmp_path):
    page = tmp_path / "benchmarks.md"
    write_section("one", "first", page)
    write_section("two", "second", page)
    page.write_text(page.read_text() + "\nWritten by a person.\n")
    write_section("one", "first again", page)
    text = page.read_text()
    assert text.startswith("# Benchmarks\n")
    assert "<!-- one -->\nfirst again\n<!-- end of one -->" in text
    assert "<!-- two -->\nsecond\n<!-- end of two -->" in text
    assert text.endswith("\nWritten by a person.\n")
    assert text.count("first") == 1


def test_writing_a_section_twice_changes_nothing(tmp_path):
    page = tmp_path / "benchmarks.md"
    write_section("one", "first", page)
    once = page.read_text()
    write_section("one", "first", page)
    assert page.read_text() == once


def test_the_columns_of_a_table_stand_below_each_other():
    assert table(["what", "n"], [["short", "1"], ["a longer one", "1,000"]]) == [
        "| what         |     n |",
        "|--------------|------:|",
        "| short        |     1 |",
        "| a longer one | 1,000 |",
    ]
