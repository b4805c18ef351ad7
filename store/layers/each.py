"""Runs one command for each layer in turn: a line for each, the layers that failed, and the paths at the end."""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from store.errors import in_words
from store.layers.parse import spell_layers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """What several layers came to."""

    text: str
    """What is left to print: the paths of what was written."""
    exit_code: int
    """That of the first layer that failed; 0 where none did."""


def each_in_turn(
    configs: Mapping[int, Any],
    run: Callable[[Any], Any],
    say: Callable[[Any, Any], str | None],
    brief: Callable[[Any, Any], str | None],
) -> Told:
    """Runs all layers. One that fails is named, and the others go on; Ctrl-C ends them all.

    configs: the options by layer.
    run: the command.
    say: its text for people, from options and result.
    brief: one line of it; None for a command whose text is printed whole.
    """
    paths: list[str] = []
    failed: dict[int, int] = {}
    for number, (layer, config) in enumerate(configs.items(), 1):
        log.info("layer %d (%d of %d)", layer, number, len(configs))
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                result = run(config)
                line = brief(config, result)
                text = (say(config, result) or "").rstrip("\n")
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError) or os.environ.get("MATRYOSHKA_TRACEBACK"):
                raise
            print(printed.getvalue(), end="", flush=True)
            log.error("error: layer %d: %s", layer, in_words(error))
            failed[layer] = getattr(error, "exit_code", 1)
            continue
        if line is None:
            print(f"{printed.getvalue()}{text}", flush=True)
            continue
        print(f"layer {layer}: {line}", flush=True)
        paths += text.splitlines()
    if failed:
        log.error("error: %d of %d layers failed: %s", len(failed), len(configs), spell_layers(list(failed)))
    return Told("\n".join(paths), next(iter(failed.values()), 0))
