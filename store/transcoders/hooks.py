"""TransformerLens's names of what a transcoder reads and predicts, which several projects write into their files."""

import re
from pathlib import Path

from store.errors import Refused
from store.views import ViewName

HOOKS: dict[str, ViewName] = {"ln2.hook_normalized": "rms", "hook_resid_mid": "raw", "mlp.hook_in": "normed"}
"""By the end of a hook's name. `hook_mlp_in` is raw resid_mid to some and the MLP's input to others: not guessed.

ln2.hook_normalized comes before the gain of an RMSNorm. Of a LayerNorm that depends on TransformerLens's version, so that
LAYOUTS leaves it out there: `export` does not write it, and `load_folder` refuses it.
"""

OUTPUT_HOOK = "hook_mlp_out"


def hook_of(view: ViewName) -> str:
    """The hook of a view, as it is called within a block."""
    return next(hook for hook, each in HOOKS.items() if each == view)


def of_one_mlp(path: Path, hook: str, out: str) -> tuple[int, str]:
    """The layer, and the input hook's name within its block. Refused when they name another pair than a layer's MLP."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    end = re.fullmatch(rf"blocks\.(\d+)\.{OUTPUT_HOOK}", out)
    if match is None or end is None or match[1] != end[1]:
        raise Refused(f"{path} goes from {hook!r} to {out!r}; only a layer's MLP, to blocks.L.hook_mlp_out, can be read")
    return int(match[1]), match[2]


def view_of(path: Path, hook: str, more: str = "") -> ViewName:
    """The view of a hook's name within a block. Refused, naming what is known, for another one.

    more: what else would say it, for the message.
    """
    if hook not in HOOKS:
        raise Refused(
            f"{path} reads {hook!r}, which does not say whether the norm is applied; known are {sorted(HOOKS)}{more}"
        )
    return HOOKS[hook]
