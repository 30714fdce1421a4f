"""Tables in Markdown."""

from tigerrec.markdown import table


def test_texts_stand_on_the_left_and_numbers_on_the_right():
    assert table([["name", "kind", "n"], ["a", "long one", "12,000"], ["bb", "", "7"]], texts=2).splitlines() == [
        "| name | kind     |      n |",
        "| ---- | -------- | -----: |",
        "| a    | long one | 12,000 |",
        "| bb   |          |      7 |",
    ]
