"""Names that options and files share; nothing heavy is imported here, so that a command's --help starts at once."""

import re
from pathlib import Path
from typing import Literal

ViewName = Literal["raw", "rms", "normed"]
"""How resid_mid is read (store/views.py)."""

NormKind = Literal["rms", "layernorm", "none"]
"""What the norm before the MLP computes; NORMS in store/views.py has an entry for each."""

SET_CONFIG = "config.yaml"
"""Of a set of circuit-tracer's: what its transcoders read and predict."""

NormReads = Literal["resid_mid", "resid_pre"]
"""The site that the norm reads: resid_pre where attention and MLP run side by side."""

MlpKind = Literal["gated", "plain"]
"""How an MLP makes its hidden layer: act(x W_gate) * (x W_up), or act(x W_up)."""

MlpActivation = Literal["gelu_tanh", "gelu", "silu", "relu"]
"""The function of an MLP's hidden layer; ACTIVATIONS in store/mlp/forward.py has an entry for each."""

SNAPSHOT = re.compile(r".*models--(.+?)--(.+?)/snapshots/([0-9a-f]+)/?(.*)")
"""Where the hub's library keeps what it fetched."""


def is_hub_url(place: Path | str) -> bool:
    """Whether a place is meant as hf://user/repo; `Path` makes one slash of two."""
    return str(place).startswith("hf:/")


WEB = re.compile(
    r"(?:https?:/+)?(?:www\.)?huggingface\.co/([\w-][\w.-]*/[\w.-]+)(?:/(?:tree|blob|resolve)/([^/?]+))?/?([^?]*)(?:\?.*)?"
)
"""The address of a repository's page, or of a folder or file in it."""


def hub_url_of(address: str) -> str | None:
    """hf://user/repo/path@revision of a page of the hub; None for another text."""
    match = WEB.fullmatch(address)
    if match is None:
        return None
    repo, revision, path = match.groups()
    place = f"hf://{repo}/{path}".rstrip("/")
    return place if revision in (None, "main") else f"{place}@{revision}"


def hub_name(place: Path) -> str | None:
    """hf://user/repo/path@commit of what lies in the hub's cache; None for other places."""
    match = SNAPSHOT.fullmatch(str(place))
    if match is None:
        return None
    owner, repo, commit, path = match.groups()
    return f"hf://{owner}/{repo}/{path}".rstrip("/") + f"@{commit[:12]}"
