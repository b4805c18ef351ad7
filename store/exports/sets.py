"""`python -m store export-set`: runs of several layers as one set of circuit-tracer's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm

from store.config import ExportSetConfig
from store.errors import Refused
from store.exports.card import write_card
from store.exports.fitting import made_for, refuse_misread_name
from store.exports.gate import Gate, gate, sample_of, with_dtype
from store.exports.opening import appearing_folder, of_a_run, refuse_filled
from store.layout import WEIGHTS, model_slug
from store.transcoders.circuit_tracer import write_layer, write_set_config
from store.transcoders.hooks import OUTPUT_HOOK, hook_of
from store.transcoders.layouts import LAYOUTS, load_run, read_run_config
from store.transcoders.transcoder import Transcoder, TranscoderConfig

NAME = "circuit-tracer"


@dataclass(frozen=True)
class Plan:
    """What a set is made of."""

    runs: dict[int, Path]
    """By layer."""
    n_layers: int
    d_sae: int
    skip: bool
    """Whether any run has a skip connection: then every file needs one."""

    @property
    def silent(self) -> list[int]:
        """Layers without a run."""
        return [layer for layer in range(self.n_layers) if layer not in self.runs]


def export_set(config: ExportSetConfig) -> str:
    """What was written, and what the gate found at each layer; for people.

    Refused for runs of one layer, of different widths, models or views, and for what `export` refuses. The folder appears
    whole, or not at all.
    """
    refuse_filled(config.out)
    refuse_misread_name(NAME, config.out)
    plan = plan_of(config.folders, config.layers)
    gates: dict[int, Gate] = {}
    made: Transcoder | None = None
    with appearing_folder(config.out) as partial:
        for layer, run in tqdm(sorted(plan.runs.items()), desc="layers", unit="layer", leave=False):
            ours, store = of_a_run(run, config.store)
            before = made
            made = made_for(LAYOUTS[NAME], NAME, ours, store, config.view)
            if before is not None and before.config.view != made.config.view:
                raise Refused(
                    f"{run} would be written with the view {made.config.view}, but the layers before it with "
                    f"{before.config.view}, and a set has one for all; give --view normed"
                )
            made = with_dtype(with_skip(made) if plan.skip else made, getattr(torch, config.dtype))
            write_layer(made, partial)
            write_set_config(made, partial)
            gates[layer] = gate(NAME, partial, ours, made, sample_of(ours, store))
        assert made is not None
        for layer in plan.silent:
            write_layer(silent(made, layer), partial)
        of_layers = {"layers": sorted(plan.runs), "silent_layers": plan.silent}
        of_one = dict.fromkeys(("name", "layer", "k", "prefix_sizes", "biases_xxh3_128"))
        hooks = {"input_hook": hook_of(made.config.view), "output_hook": OUTPUT_HOOK}
        write_card(partial, NAME, made, *gates.values(), **of_layers, **of_one, **hooks)
    lines = [f"{config.out}: {plan.n_layers} layers of {plan.d_sae:,} latents, as a set of circuit-tracer's"]
    lines += [f"  layer {layer}: {found}" for layer, found in gates.items()]
    if plan.silent:
        lines.append(
            f"  layers {', '.join(map(str, plan.silent))} have no run: silent transcoders stand there, whose MLP counts "
            "as error"
        )
    if config.layers is None:
        lines.append(f"  give --layers if the model has more than {plan.n_layers}: circuit-tracer needs every one")
    return "\n".join(lines)


def plan_of(runs: Sequence[Path], n_layers: int | None) -> Plan:
    """What a set of these runs is made of. Refused for runs that cannot stand in one set, before anything is read whole."""
    if not runs:
        raise Refused(
            "no run is given; name the folders of the runs, one a layer: python -m store export-set RUN RUN --out X, or "
            "their layers: --layer all --out X"
        )
    configs: dict[int, TranscoderConfig] = {}
    by_layer: dict[int, Path] = {}
    for run in runs:
        if not (run / WEIGHTS).exists():
            load_run(run)  # which refuses it
        config = read_run_config(run)
        if config.layer in by_layer:
            raise Refused(f"{by_layer[config.layer]} and {run} are both of layer {config.layer}; give one run a layer")
        configs[config.layer] = config
        by_layer[config.layer] = run
    first = next(iter(configs.values()))
    for layer, config in configs.items():
        if config.d_sae != first.d_sae:
            raise Refused(
                f"{by_layer[layer]} has {config.d_sae:,} latents, but {by_layer[first.layer]} {first.d_sae:,}, and a "
                "set of "
                "circuit-tracer's has one width; train them with the same --d-sae, or give runs of one width"
            )
        if model_slug(config.model) != model_slug(first.model) or config.d_in != first.d_in:
            raise Refused(
                f"{by_layer[layer]} is of {config.model}, but {by_layer[first.layer]} of {first.model}; give runs of "
                "one model"
            )
    needed = max(configs) + 1
    if n_layers is not None and n_layers < needed:
        raise Refused(f"layers is {n_layers}, but there is a run of layer {needed - 1}; give --layers of at least {needed}")
    return Plan(by_layer, n_layers or needed, first.d_sae, any(map(_has_skip, runs)))


def _has_skip(run: Path) -> bool:
    with safe_open(run / WEIGHTS, "pt") as file:
        return "W_skip" in file.keys()  # noqa: SIM118


def with_skip(transcoder: Transcoder) -> Transcoder:
    """The transcoder with a skip connection, if only of zeros: a set's layers have one all, or none."""
    if transcoder.W_skip is not None:
        return transcoder
    return replace(transcoder, W_skip=torch.zeros(transcoder.config.d_out, transcoder.config.d_in))


def silent(like: Transcoder, layer: int) -> Transcoder:
    """A transcoder of another layer, in the same shapes, that never fires and predicts zero. bfloat16, which is exact."""
    zeros = {name: torch.zeros_like(array, dtype=torch.bfloat16) for name, array in like.arrays().items()}
    return replace(like, config=like.config.model_copy(update={"layer": layer}), **zeros)
