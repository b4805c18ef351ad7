"""Layers as people write them, read and written back."""

import pytest

from store.errors import Refused
from store.layers.parse import parse_layers, spell_layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("8", (8,)),
        ("8,12,17", (8, 12, 17)),
        ("0-3", (0, 1, 2, 3)),
        ("0-2,8,12-13", (0, 1, 2, 8, 12, 13)),
        ("5-5", (5,)),
        ("12,3-4", (12, 3, 4)),
    ],
)
def test_layers_are_numbers_and_ranges_with_commas(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, f"'{text}' are not layers; write each once") for text in ("8,", "a", "-1", "1-", "1-2-3", "")),
        ("all,3", "'all,3' are not layers; write each once"),
        ("25-0", "'25-0' is a range from a higher layer to a lower one; write 0-25"),
        ("9,9", "'9,9' has layer 9 twice"),
        ("0-4,3", "'0-4,3' has layer 3 twice"),
        ("0-99999999999", "no model has more than 1,000 layers"),
        ("1000", "no model has more than 1,000 layers"),
    ],
)
def test_what_are_not_layers_is_refused_in_one_line(text, message):
    with pytest.raises(Refused) as refused:
        parse_layers(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("layers", "text"), [((8,), "8"), ((0, 1), "0,1"), ((0, 1, 2, 5, 7, 8, 9), "0-2,5,7-9"), ((), "")])
def test_layers_are_spelt_as_they_are_read(layers, text):
    assert spell_layers(layers) == text
    if layers:
        assert parse_layers(text) == layers
