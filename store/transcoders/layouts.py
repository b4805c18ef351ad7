"""How projects lay a transcoder out in files: one table, by which every layout is read and, where it can be, written."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import xxhash
from pydantic import ValidationError

from store.disk.schema import first_complaint
from store.disk.suggest import command_line
from store.errors import Damaged, Refused
from store.layout import CONFIG, EXPORT, WEIGHTS, model_slug
from store.names import SET_CONFIG, hub_url_of
from store.transcoders.circuit_tracer import (
    LOST_TOPK,
    is_circuit_tracer,
    load_circuit_tracer,
    save_circuit_tracer,
)
from store.transcoders.files import read_config, read_settings
from store.transcoders.gemma_scope import (
    SCOPE1_WEIGHTS,
    SCOPE2_WEIGHTS,
    load_scope1,
    load_scope2,
    save_scope1,
    save_scope2,
)
from store.transcoders.legacy import LegacyTranscoder, checkpoint_in, load_legacy
from store.transcoders.llamascopium import LLAMASCOPIUM_WEIGHTS, load_llamascopium
from store.transcoders.saelens import SAELENS_CONFIG, SAELENS_WEIGHTS, load_saelens, save_saelens
from store.transcoders.sparsify import SPARSIFY_CONFIG, SPARSIFY_WEIGHTS, load_sparsify, save_sparsify
from store.transcoders.transcoder import Transcoder, TranscoderConfig
from store.views import NORMS, VIEWS, NormKind, ViewName

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(/[\w./-]+)?")
"""What may be a repository of the hub, or a folder in one."""
OTHER_MODEL = "%s says that it is for %s, but these rows are of %s: its figures mean nothing unless that is the same model"
log = logging.getLogger(__name__)

NAMED_BY_HOOKS: dict[NormKind, tuple[ViewName, ...]] = {
    "rms": ("raw", "rms", "normed"),
    "layernorm": ("normed", "raw"),
    "none": ("raw",),
}
"""Views of files that name TransformerLens's hooks: `ln2.hook_normalized` comes before a LayerNorm's gain in some versions,
and after it in others, so that it says nothing there."""


@dataclass(frozen=True, kw_only=True)
class Holds:
    """What the files of a layout can say of a transcoder."""

    views: Mapping[NormKind, tuple[ViewName, ...]]
    """Views of resid_mid that its files can name, by kind of the model's norm; a kind that is missing is refused."""
    skip: bool = True
    """Whether it has a place for W_skip."""
    activation: Literal["threshold", "topk"] = "threshold"
    """The activation that it holds."""
    why_not_topk: str = ""
    """Why TopK is refused, where that is more than a missing key."""
    square: bool = False
    """Whether it has one width for input and output."""
    bfloat16: bool = True
    """Whether its readers take weights in bfloat16."""
    everything: bool = False
    """Whether it holds TopK, any sites and layers, and standardised input too."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of one project; all entries of LAYOUTS pass the contract in tests/store/transcoders/test_layouts.py."""

    files: str
    """The files that make it up, for people."""
    recognise: Callable[[Path], bool]
    """Whether a folder (or a file) is laid out so."""
    load: Callable[[Path, int, str], Transcoder]
    """Reads a folder; the layer and the model are used where its files name none."""
    save: Callable[[Transcoder, Path], None] | None = None
    """Writes a folder. Refused for a transcoder that the layout cannot hold. None for a layout that is only read."""
    holds: Holds
    tested_with: str = ""
    """The tool, and its version, that has read files written here and gave the run's outputs (`make interop`)."""


def run_class(directory: Path) -> type[Transcoder]:
    """The class of the transcoder in a run's folder: `features --baseline` also saves standardised legacy ones as runs."""
    return LegacyTranscoder if read_settings(directory / CONFIG).get("standardised") else Transcoder


def load_run(directory: Path, device: torch.device | str = "cpu") -> Transcoder:
    """The transcoder of a run. Refused where there is none, Damaged where its files are."""
    _refuse_other_layouts(directory)
    kind = run_class(directory) if (directory / CONFIG).exists() else Transcoder
    return kind.load(directory, device)


def read_run_config(directory: Path) -> TranscoderConfig:
    """The config.json of a run. Refused for another project's transcoder, Damaged where it is not one."""
    _refuse_other_layouts(directory)
    return read_config(directory / CONFIG, run_class(directory).config_kind)


def _refuse_other_layouts(directory: Path) -> None:
    """Refused, naming the command that makes a run of it, for another project's transcoder."""
    other = other_layout_of(directory)
    if other is not None:
        export = command_line("store", "export", run=directory, layout="run", store="STORE", out="RUN")
        raise Refused(
            f"{directory} holds a transcoder in the layout {other}, not a run: compare with it as BASELINE=, or make a run "
            f"of it with {export}"
        )


def holding(*names: str) -> Callable[[Path], bool]:
    """Recognises a folder that has all these files."""
    return lambda path: all((path / name).exists() for name in names)


def scope1_file(path: Path) -> Path:
    """The npz of a Gemma Scope 1 transcoder, which may be named itself."""
    return path if path.suffix == ".npz" else path / SCOPE1_WEIGHTS


LAYOUTS = {
    "circuit-tracer": Layout(
        files=f"{SET_CONFIG} with layer_N.safetensors",
        recognise=is_circuit_tracer,
        load=load_circuit_tracer,
        save=save_circuit_tracer,
        holds=Holds(views=NAMED_BY_HOOKS, square=True, why_not_topk=LOST_TOPK),
        tested_with="circuit-tracer v0.5.0",
    ),
    "gemma-scope-1": Layout(
        files=SCOPE1_WEIGHTS,
        recognise=lambda path: scope1_file(path).exists(),
        load=lambda path, layer, model: load_scope1(scope1_file(path), layer, model),
        save=save_scope1,
        holds=Holds(views={"rms": ("rms",)}, skip=False, bfloat16=False),
        tested_with="circuit-tracer 0.5.0",
    ),
    "gemma-scope-2": Layout(
        files=f"{SCOPE2_WEIGHTS} with {CONFIG}, or with Google's folder names",
        recognise=lambda path: (path / SCOPE2_WEIGHTS).exists(),
        load=lambda path, layer, model: load_scope2(path, model),
        save=save_scope2,
        holds=Holds(views={"rms": ("normed",), "layernorm": ("normed",)}),
        tested_with="circuit-tracer 0.5.0",
    ),
    "llamascopium": Layout(
        files=f"{CONFIG} with {LLAMASCOPIUM_WEIGHTS}",
        recognise=holding(CONFIG, LLAMASCOPIUM_WEIGHTS),
        load=lambda path, layer, model: load_llamascopium(path, model),
        holds=Holds(views=NAMED_BY_HOOKS),
    ),
    "run": Layout(
        files=f"{CONFIG} with {WEIGHTS}",
        recognise=holding(CONFIG, WEIGHTS),
        load=lambda path, layer, model: load_run(path),
        save=lambda transcoder, directory: transcoder.save(directory),
        holds=Holds(views=dict.fromkeys(NORMS, tuple(VIEWS)), everything=True, bfloat16=False),
    ),
    "saelens": Layout(
        files=f"{SAELENS_CONFIG} with {SAELENS_WEIGHTS}",
        recognise=holding(SAELENS_CONFIG, SAELENS_WEIGHTS),
        load=lambda path, layer, model: load_saelens(path),
        save=save_saelens,
        holds=Holds(views=NAMED_BY_HOOKS),
        tested_with="sae-lens 6.54.12",
    ),
    "sparsify": Layout(
        files=f"{SPARSIFY_CONFIG} with {SPARSIFY_WEIGHTS}",
        recognise=holding(SPARSIFY_CONFIG, SPARSIFY_WEIGHTS),
        load=load_sparsify,
        save=save_sparsify,
        holds=Holds(views={"rms": ("normed",), "layernorm": ("normed",)}, activation="topk", square=True),
        tested_with="eai-sparsify 1.3.3",
    ),
    "legacy": Layout(
        files=f"{CONFIG} with checkpoint.pt",
        recognise=lambda path: (path / CONFIG).exists() and checkpoint_in(path) is not None,
        load=lambda path, layer, model: load_legacy(path),
        holds=Holds(views=NAMED_BY_HOOKS),
    ),
}
"""By name. The first layout that recognises a folder reads it."""


def layout_of(path: Path) -> str | None:
    """The layout of a file or folder; None where no layout recognises it."""
    return next((name for name, layout in LAYOUTS.items() if layout.recognise(path)), None)


def other_layout_of(directory: Path) -> str | None:
    """The layout of another project's transcoder; None for a run, and where no layout recognises the folder."""
    return None if LAYOUTS["run"].recognise(directory) else layout_of(directory)


def load_folder(path: Path, layer: int, model: str, norm: NormKind | None = None) -> Transcoder:
    """A transcoder from a file or folder in any known layout.

    Refused where no layout recognises it, and where its layout does not say what its view is under such a norm.

    layer, model: what it is for, where its files do not say.
    norm: the kind of the model's norm, where it is known.
    """
    name = layout_of(path)
    if name is None and not path.exists():
        place = hub_url_of(str(path)) or (f"hf://{path}" if HUB_NAME.fullmatch(str(path)) else None)
        on_hub = "" if place is None else f"; on the hub it would be {place}"
        raise Refused(f"{path} does not exist; give a folder or file that does{on_hub}")
    if name is None:
        expected = ", ".join(f"{layout.files} ({each})" for each, layout in LAYOUTS.items())
        raise Refused(f"{path} holds no transcoder: expected one of {expected}")
    transcoder = LAYOUTS[name].load(path, layer, model)
    view = transcoder.config.view
    if norm is not None and view not in LAYOUTS[name].holds.views.get(norm, ()):
        raise Refused(
            f"{path} reads the view {view}, and the layout {name} does not say what that is where the norm before "
            f"the MLP is {NORMS[norm].label}; give the transcoder in another layout, as {CONFIG} with {WEIGHTS}"
        )
    return with_what_its_card_says(transcoder, path, name)


def with_what_its_card_says(transcoder: Transcoder, path: Path, layout: str) -> Transcoder:
    """With the name, the k and the prefixes that an export of ours has in export.json, where the layout has no place for
    them.

    As it is where there is no such file, or where that is of a set, of an earlier version or of other weights. Damaged
    where it cannot be read, or does not fit.
    """
    card = (path if path.is_dir() else path.parent) / EXPORT
    if LAYOUTS[layout].holds.everything or not card.is_file():
        return transcoder
    said = read_settings(card)
    if said.get("layout") != layout or said.get("biases_xxh3_128") != checksum_of_biases(transcoder):
        return transcoder
    config = transcoder.config
    lacking = ["name", "prefix_sizes"] + ["k"] * (config.k is None)
    kept = {key: said[key] for key in lacking if said.get(key) is not None}
    try:
        return replace(transcoder, config=type(config).model_validate(config.model_dump() | kept))
    except (ValidationError, Refused) as error:
        reason = first_complaint(error, type(config).model_fields) if isinstance(error, ValidationError) else error
        raise Damaged(f"{card} does not fit the weights beside it ({reason}); restore it, or delete it") from None


def checksum_of_biases(transcoder: Transcoder) -> str:
    """Of b_enc and b_dec in float32, which every layout keeps: tells one transcoder from another."""
    biases = torch.cat([transcoder.b_enc, transcoder.b_dec]).float()
    return xxhash.xxh3_128_hexdigest(biases.cpu().numpy().tobytes())


def warn_of_another_model(path: Path, transcoder: Transcoder, model: str) -> None:
    """Says so where a transcoder's files name another model than that of the rows it is to be measured on."""
    named = transcoder.config.model
    if named and model_slug(named) != model_slug(model):
        log.warning(OTHER_MODEL, path, named, model)
