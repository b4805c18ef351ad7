"""The layers of a set, opened and checked, and what replaces each MLP: the run, a linear map, a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from evaluate.baselines import find_baselines, hub_name_of, in_folders
from evaluate.compare.trivial import fit, least_squares
from evaluate.runs import OpenRun, check_fits, check_in_model, open_runs
from evaluate.sets.config import CompareSetConfig
from evaluate.sets.replaced import READABLE, Replacement
from evaluate.sets.result import SetMember
from store.errors import Damaged, Refused
from store.layers.words import LAYER
from store.layout import WEIGHTS, model_slug
from store.transcoders.layouts import load_run
from store.transcoders.transcoder import Transcoder

CURE = "give runs that predict mlp_out of their own layer"


@dataclass(frozen=True)
class Side:
    """One kind of replacement, on its device."""

    kind: str
    """ours, linear or baseline."""
    name: str
    transcoders: Mapping[int, Transcoder]
    """By layer."""

    @property
    def members(self) -> tuple[SetMember, ...]:
        return tuple(
            SetMember(layer=layer, name=t.config.name, source=t.config.source, d_sae=t.config.d_sae, k=t.config.k)
            for layer, t in self.transcoders.items()
        )


def open_set(config: CompareSetConfig) -> list[OpenRun]:
    """The runs of the layers, the lowest first.

    Refused for fewer than two layers, stores that are not of one harvest, and runs that cannot stand in the model.
    """
    return open_runs(config, refuse_outside_model, "a set")


def refuse_outside_model(run: OpenRun) -> None:
    """Refused unless the run's output can take the place of its layer's MLP, in the model of its store."""
    refuse_transcoder(run.transcoder, str(run.folder))
    named = run.transcoder.config.model
    model = run.store.manifest.recipe.model
    if model_slug(hub_name_of(named)) != model_slug(hub_name_of(model)):
        raise Refused(f"{run.folder} is of {named}, but {run.store.directory} holds {model}; give runs of that model")


def refuse_transcoder(transcoder: Transcoder, where: str) -> None:
    """Refused unless it predicts mlp_out of its own layer, from a site that is there before."""
    check_in_model(transcoder.config, CURE)
    if transcoder.config.source_site not in READABLE:
        raise Refused(f"{where} reads {transcoder.config.source_site}, which comes after the MLP; {CURE}")


def open_baseline(config: CompareSetConfig, runs: Sequence[OpenRun]) -> Side | None:
    """The baseline of every layer; None where none is asked for. Refused, naming the layer, where it has none that fits."""
    if config.baseline is None and config.l0 is None:
        return None
    found = {}
    for run in runs:
        layer = run.transcoder.config.layer
        try:
            found[layer] = baseline_of_layer(config, run)
        except (Refused, Damaged) as error:
            raise type(error)(f"layer {layer}: {error}") from None
    others = list(found.values())
    name = named_of_google(others) if config.baseline is None else name_of_set(config.baseline, others)
    return Side("baseline", config.baseline_name or name, found)


def baseline_of_layer(config: CompareSetConfig, run: OpenRun) -> Transcoder:
    """What stands beside the run of one layer. Refused where it does not fit, HubUnreachable without a network."""
    layer = run.transcoder.config.layer
    place = config.for_layer(layer).baseline
    folders = () if place is None else in_folders((place,), config.l0, layer, run.transcoder)
    [other, *_] = find_baselines(folders[:1], config.baseline_name, config.l0, run.store, run.transcoder)
    check_fits(other, run.store)
    refuse_transcoder(other, str(place or other.config.source))
    return other


def named_of_google(transcoders: Sequence[Transcoder]) -> str:
    """What Google's are called together: by their repository, and their architectures."""
    repo = "/".join(transcoders[0].config.source.split("/")[:2])
    return f"{repo} ({', '.join(sorted({each.config.architecture for each in transcoders}))})"


def name_of_set(place: Path, transcoders: Sequence[Transcoder]) -> str:
    """What a baseline is called: its place, without the layer's part, and the architectures of its transcoders."""
    own = [part for part in place.parts if LAYER not in part]
    kinds = sorted({each.config.architecture for each in transcoders})
    return f"{own[-1] if own else place.name} ({', '.join(kinds)})"


def refuse_without_training_rows(runs: Sequence[OpenRun]) -> None:
    """Refused where linear maps have nothing to be fitted on: a bounded cache lets go of its training rows."""
    for run in runs:
        if not run.store.manifest.n_rows("train"):
            raise Refused(
                f"{run.store.directory} holds no training rows for the best linear map; leave it out with --no-linear"
            )


def linear_maps(runs: Sequence[OpenRun], work: Path, device: torch.device) -> Side:
    """The best linear map of every layer; those that lie in the folder of finished parts are not fitted again."""
    found = {}
    for run in runs:
        layer = run.transcoder.config.layer
        folder = work / f"linear-layer{layer}"
        if not (folder / WEIGHTS).exists():
            like = run.transcoder.config
            least_squares(fit(run.store, like, device), like).to("cpu").save(folder)
        found[layer] = load_run(folder).to(device)
    return Side("linear", "the best linear maps", found)


def replacements_of(side: Side, runs: Sequence[OpenRun], device: torch.device, at_once: int) -> dict[int, Replacement]:
    """By layer, what is put in the MLP's place.

    side: whose transcoders they are.
    runs: of the layers; their stores have the norms.
    device: where they run.
    at_once: rows in a step.
    """
    norms = {run.transcoder.config.layer: run.store.norm.to(device) for run in runs}
    return {layer: Replacement.of(each.to(device), norms[layer], at_once) for layer, each in side.transcoders.items()}


def digest_of(transcoder: Transcoder) -> bytes:
    """Changes with what the transcoder computes."""
    digest = xxhash.xxh3_128(transcoder.config.model_dump_json(exclude={"source", "name"}).encode())
    for name, array in transcoder.arrays().items():
        digest.update(name.encode())
        digest.update(array.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
