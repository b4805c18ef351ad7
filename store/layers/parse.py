"""Layers as people write them: 8, or 8,12,17, or 0-25, or 0-4,8,12-13."""

from collections.abc import Sequence

from store.errors import Refused

ALL = "all"
"""The word for every layer. A command line has the numbers in its place before the options are parsed."""
MOST_LAYERS = 1000
"""No model is so deep: a longer range is a slip of the hand."""


def parse_layers(text: str) -> tuple[int, ...]:
    """The layers of a text, in its order. Refused for a range that is reversed, a layer that is there twice, and others."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise Refused(f"{text!r} are not layers; write each once, like 8 or 8,12,17, a range like 0-25, or all")
        begin = int(first)
        end = int(last) if dash else begin
        if end < begin:
            raise Refused(f"{part!r} is a range from a higher layer to a lower one; write {end}-{begin}")
        if end >= MOST_LAYERS:
            raise Refused(f"{part!r} is out of range: no model has more than {MOST_LAYERS:,} layers, counted from 0")
        found += range(begin, end + 1)
    twice = next((layer for layer in found if found.count(layer) > 1), None)
    if twice is not None:
        raise Refused(f"{text!r} has layer {twice} twice; write each layer once")
    return tuple(found)


def as_layers(layer: int | tuple[int, ...]) -> tuple[int, ...]:
    """The layers of an option that names one or several."""
    return layer if isinstance(layer, tuple) else (layer,)


def spell_layers(layers: Sequence[int]) -> str:
    """The shortest text for layers, as `parse_layers` reads it: 0-4,8,12,13."""
    parts: list[str] = []
    rest = list(layers)
    while rest:
        length = 1
        while length < len(rest) and rest[length] == rest[0] + length:
            length += 1
        run = rest[:length]
        parts += [f"{run[0]}-{run[-1]}"] if length > 2 else map(str, run)
        rest = rest[length:]
    return ",".join(parts)
