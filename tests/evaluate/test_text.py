"""Tables as plain text and in Markdown."""

from evaluate.text import markdown_table, text_table


def test_columns_of_a_text_table_are_as_wide_as_their_widest_cell():
    assert text_table([["FVU", "0.1", "-"], ["width", "8,192", "4"]], ["", "ours", "theirs"]) == [
        "        ours  theirs",
        "FVU      0.1       -",
        "width  8,192       4",
    ]


def test_bars_in_cells_of_a_markdown_table_are_escaped():
    assert markdown_table([["|cosine|", "1"]], ["metric", "ours"]) == [
        "| metric | ours |",
        "| --- | --- |",
        "| \\|cosine\\| | 1 |",
    ]
