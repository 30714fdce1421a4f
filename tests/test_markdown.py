"""Tables in Markdown."""

from tigerrec.markdown import table, written


def test_texts_stand_on_the_left_and_numbers_on_the_right():
    assert table([["name", "kind", "n"], ["a", "long one", "12,000"], ["bb", "", "7"]], texts=2).splitlines() == [
        "| name | kind     |      n |",
        "| ---- | -------- | -----: |",
        "| a    | long one | 12,000 |",
        "| bb   |          |      7 |",
    ]


def test_a_narrow_column_has_a_rule_that_markdown_knows():
    assert table([["k", "n"], ["a", "7"]]).splitlines()[1] == "| -- | -: |"


def test_settings_are_written_as_people_do():
    assert [written(value) for value in (0.002, 10.0, 1234567, "ce", None, True)] == [
        "0.002",
        "10",
        "1234567",
        "ce",
        "None",
        "True",
    ]
