"""The layers that a command line asks for, before its options are parsed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import get_type_hints

from store.disk.remote import Remote, parse_store_path
from store.errors import Refused
from store.layers.parse import ALL, parse_layers, spell_layers
from store.layout import default_store
from store.parents import holds_store, layers_in, named_by
from store.usage import HELP_FLAGS, flag_in, leaves, values_of

IN_TURN = "in turn"
"""Metadata of a `layer` option that is one number: the command runs for each layer of a list, one after the other."""
LAYER = "{layer}"
"""Stands for the layer's number in a path."""
PATHS_OF_ONE_LAYER = ("--run", "--out", "--target-store")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerWords:
    """The words given to a command, read as far as they say which layers of which model are meant."""

    kind: type
    """Config dataclass of the command."""
    words: tuple[str, ...]

    def value(self, flag: str) -> str | None:
        """The value of an option such as --model: the one that was given last, else its default."""
        given = values_of(flag, self.words)
        if given:
            return given[0]
        name = flag.lstrip("-").replace("-", "_")
        default = next((field.default for field in fields(self.kind) if field.name == name), None)
        return default if isinstance(default, str) else None

    def with_value(self, flag: str, value: str) -> "LayerWords":
        """The words with another value of an option, wherever it is given; unchanged where it is not."""
        found: list[str] = []
        behind = False
        for word in self.words:
            if behind:
                found.append(value)
            elif flag_in(word) == flag and "=" in word:
                found.append(f"{flag}={value}")
            else:
                found.append(word)
            behind = not behind and flag_in(word) == flag and "=" not in word
        return replace(self, words=tuple(found))

    def spelt_out(self, every_layer: "Callable[[LayerWords], Sequence[int]]") -> "LayerWords":
        """The words with numbers in the place of --layer all."""
        if values_of("--layer", self.words) != [ALL] or not set(HELP_FLAGS).isdisjoint(self.words):
            return self
        return self.with_value("--layer", ",".join(map(str, every_layer(self))))

    def in_turn(self) -> tuple[int, ...]:
        """The layers for which the command runs one after the other; empty where it runs once."""
        if "layer" not in {field.name for field in fields(self.kind)}:
            return ()
        hint = get_type_hints(self.kind, include_extras=True)["layer"]
        given = values_of("--layer", self.words)
        if IN_TURN not in leaves(hint) or len(given) != 1:
            return ()
        try:
            layers = parse_layers(given[0])
        except Refused:
            return ()  # parsing the options says what is wrong
        return layers if len(layers) > 1 else ()

    def for_layer(self, layer: int) -> list[str]:
        """The words for one of several layers. Refused for a path that names no layer, and would be that of all."""
        one = replace(self, words=tuple(word.replace(LAYER, str(layer)) for word in self.words))
        one = one.with_value("--layer", str(layer))
        for flag in PATHS_OF_ONE_LAYER:
            if values_of(flag, self.words) and values_of(flag, self.words) == values_of(flag, one.words):
                path = values_of(flag, self.words)[0]
                raise Refused(f"{path} is one folder for several layers; write {LAYER} where the number stands")
        store = values_of("--store", self.words)
        if store and LAYER not in store[0]:
            if holds_store(parse_store_path(store[0])):
                raise Refused(f"{store[0]} is the store of one layer; give the folder that holds layer8, layer12, ...")
            one = one.with_value("--store", f"{store[0].rstrip('/')}/layer{layer}")
        return list(one.words)


def layers_there(line: LayerWords) -> list[int]:
    """The layers whose stores lie in --store, or in data/MODEL. Refused where there are none."""
    given = line.value("--store")
    place = parse_store_path(given) if given else default_store(line.value("--model") or "", 0).parent
    if isinstance(place, Remote):
        raise Refused(f"layer is all, but the folders of {place} cannot be listed; write the layers out, like 0-25")
    found = layers_in(place)
    if not found:
        raise Refused(f"layer is all, but {place} holds no layer0, layer1, ...; `make harvest LAYER=all` makes them")
    log.info("layers %s: those that %s holds", spell_layers(found), place)
    return found


def with_names_of_store(words: Sequence[str]) -> list[str]:
    """The words, and before them the model and the layer of the store that they give, where they name none; of a folder of
    several layers' stores the model alone."""
    given = values_of("--store", words)
    if not given:
        return [*words]
    store = parse_store_path(given[0])
    there = [] if holds_store(store) else layers_in(store)
    known = named_by(store / f"layer{there[0]}" if there else store)
    if there:
        known.pop("layer", None)
    return [word for name in known if not values_of(f"--{name}", words) for word in (f"--{name}", known[name])] + [*words]
