"""Tiny models are loaded once: TransformerLens takes a tenth of a second or more for each, of whatever size."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from harvest.model.loading import Complete

TINY = 4 << 20
"""Bytes of a folder up to which its model is kept."""
KEPT = 16
"""Models kept, those asked for last."""
LIBRARIES = ("transformers.", "transformer_lens.")


def load_once() -> None:
    """From now on TransformerBridge loads a tiny model of unchanged files once; everyone gets the same object.

    A test that leaves a hook in a model leaves it to itself: the next one loads another.
    """
    TransformerBridge.boot_transformers = staticmethod(Once(TransformerBridge.boot_transformers))


class Once:
    """Stands for the function that loads."""

    def __init__(self, load: Any) -> None:
        self.load = load
        self.kept: dict[tuple, TransformerBridge] = {}
        self.templates: dict[tuple, Any] = {}
        """Chat templates as they were loaded: a harvest may give the tokenizer another."""

    def __call__(self, name: str, *, model_class: Complete, **options: Any) -> TransformerBridge:
        key = _key(name, model_class, options)
        if key is None:
            return self.load(name, model_class=model_class, **options)
        bridge = self.kept.pop(key, None)
        if bridge is None or any(_hooks(bridge)):
            with torch.random.fork_rng(devices=[]):  # what a test draws does not depend on who loaded the model
                bridge = self.load(name, model_class=model_class, **options)
            self.templates[key] = bridge.tokenizer.chat_template
        bridge.tokenizer.chat_template = self.templates[key]
        self.kept[key] = bridge
        if len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return bridge


def _key(name: str, model_class: Complete, options: dict[str, Any]) -> tuple | None:
    """What decides the model; None where it is not kept."""
    folder = Path(name)
    if not folder.is_dir() or model_class.adapter is not None or options.get("device") != torch.device("cpu"):
        return None
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    if sum(file.st_size for _, file in files) > TINY:
        return None
    stamps = tuple((path, file.st_size, file.st_mtime_ns) for path, file in files)
    return str(folder), model_class.model_class, repr(sorted(options.items())), stamps


def _hooks(bridge: TransformerBridge) -> Iterator[Callable]:
    """What was hooked into its modules, but for what both libraries put there at the first forward and leave."""
    for module in bridge.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(module, HookPoint) or not hook.__module__.startswith(LIBRARIES):
                yield hook
