"""Tables in Markdown."""

from tigerrec.text import aligned, figure, percent, table, written


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


def test_metrics_are_quoted_without_the_zero_before_the_point():
    assert [figure(value) for value in (0.0605, 0.0, 1.0, -0.0031, None)] == [".0605", ".0000", "1.0000", "-.0031", "–"]
    assert [figure(0.5, form) for form in ("+.4f", ".1f", "+.1%")] == ["+.5000", "0.5", "+50.0%"]
    assert percent(0.1249) == "12.5 %"


def test_plain_columns_are_as_wide_as_their_widest_cell():
    assert aligned([["name", "n"], ["a", "12"], ["longer", ""]]) == "name    n\na       12\nlonger"
