"""Tables as plain text and in Markdown."""

from evaluate.text import markdown_table, share, text_table


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


def test_a_density_is_in_percent_to_two_digits_however_small():
    assert [share(value) for value in (0.0, 0.5, 0.123, 0.0123, 1 / 193, 0.000031, 2e-8)] == [
        "never",
        "50.0%",
        "12.3%",
        "1.2%",
        "0.52%",
        "0.0031%",
        "0.0000020%",
    ]
