"""The commands that make a run again, from what it records of its store."""

import re
import shlex
from dataclasses import fields

from harvest.config import HarvestConfig
from harvest.text.recorded import options_of
from store.shards.origin import Side

ALWAYS = ("model", "layer", "dataset", "context", "shard_tokens", "heldout_every", "seed")
"""Options that are written out even where they are the default: they are what people look for."""

COMMIT = re.compile("[0-9a-f]{40}")
"""A model's revision on the hub; that of a folder or a package is a hash of its files."""


def harvest_words(side: Side) -> list[str]:
    """The options of the harvest that made a store, as words of a command line.

    The tokens are left out where the run was made by a version that did not record them.
    """
    defaults = {field.name: field.default for field in fields(HarvestConfig)}
    options = options_of(side.recipe)
    if COMMIT.fullmatch(side.recipe.model_revision):
        options["model_revision"] = side.recipe.model_revision
    if side.tokens is not None:
        options["tokens"] = side.tokens
    first = [name for name in (*ALWAYS[:3], "tokens", *ALWAYS[3:]) if name in options]
    rest = [name for name in options if name not in first and options[name] != defaults[name]]
    words = []
    for name in (*first, *rest):
        value = options[name]
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(",".join(value) if isinstance(value, tuple) else str(value))
    return words


def commands(side: Side) -> str:
    """The harvest and the training, as people copy them; for Markdown, indented."""
    where = shlex.join(["--model", side.recipe.model, "--layer", str(side.recipe.layer)])
    lines = ["    python -m harvest"]
    for word in harvest_words(side):
        quoted = shlex.quote(word)
        if word.startswith("--") and len(lines[-1]) > 90:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {quoted}"
    return "\n".join([*lines, f"    python -m train {where}  # with the options in train_config.json"])
