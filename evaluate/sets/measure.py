"""Runs the model on held-out sequences with every choice of layers replaced, and keeps the sums of finished sequences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from evaluate.intervals import by_document
from evaluate.model.sequences import TokenRows, chosen_places, tokens_of
from evaluate.model.splice import SEQUENCES_AT_ONCE
from evaluate.model.unembed import predictions
from evaluate.sets.choices import Variant
from evaluate.sets.replaced import CleanRun, Replacement, run_clean, run_replaced
from evaluate.sets.table import CLEAN, PREDICTIONS, Column, SetTable, columns_of
from harvest.model.language_model import LanguageModel
from harvest.model.unembedding import Unembedding
from harvest.pool import Lanes
from store.devices import of_kind
from store.disk.files import write_tensors
from store.shards.manifest import ShardEntry
from store.shards.reader import Store

VARIANTS_AT_ONCE = 8
"""Runs of the model whose hidden states are held at once, to be unembedded together."""


@dataclass(frozen=True)
class SetRun:
    """What is run, on which sequences."""

    store: Store
    """Any of the set: its tokens alone are read."""
    sides: Sequence[Mapping[int, Replacement]]
    """By kind of replacement, by layer."""
    layers: Sequence[int]
    """Ascending."""
    variants: Sequence[Variant]
    sequences: int
    work: Path
    """Folder of what is finished."""

    def columns(self, model: LanguageModel) -> list[Column]:
        return columns_of(self.variants, self.layers, model.n_layers)


def measure(run: SetRun, model: LanguageModel) -> tuple[SetTable, int]:
    """The sums by document, and the number of sequences that they are of. Finished sequences are not run again."""
    places = chosen_places(run.store, run.sequences, of_kind(SEQUENCES_AT_ONCE, model.device))
    texts = [tokens_of(run.store, *place) for place in places]
    lanes = Lanes(model)
    means = mean_outputs(run, texts, lanes)
    parts = [part_file(run.work, *place) for place in places]
    missing = [number for number, part in enumerate(parts) if not part.exists()]
    n_sequences = sum(len(text.tokens) for text in texts)
    total = n_sequences * len(run.variants)
    done = total - sum(len(texts[number].tokens) for number in missing) * len(run.variants)
    with tqdm(total=total, initial=done, desc="replacing layers", unit="run") as bar:

        @torch.no_grad()  # holds in one thread only
        def work(lane: LanguageModel, number: int) -> tuple[int, Tensor, Tensor]:
            text = texts[number]
            table = torch.stack([*columns_on(run, lane, text, means, bar)], dim=1)
            document, index = torch.unique(text.document[:, :-1][text.counted], return_inverse=True)
            return number, document, by_document(index, table) if len(index) else table.double()

        def keep(measured: tuple[int, Tensor, Tensor]) -> None:
            number, document, sums = measured
            write_tensors(parts[number], {"document": document, "sums": sums})

        lanes.run(work, missing, keep)
    read = [load_file(part) for part in parts]
    index = torch.unique(torch.cat([part["document"] for part in read]), return_inverse=True)[1]
    return SetTable(run.columns(model), by_document(index, torch.cat([part["sums"] for part in read]))), n_sequences


def part_file(work: Path, shard: ShardEntry, wanted: Tensor) -> Path:
    """Named by the sequences that it has: how many run at once depends on the device, which may be another one later."""
    return work / f"sequences-{shard.first_sequence + int(wanted[0]):07d}-{len(wanted)}.safetensors"


def mean_outputs(run: SetRun, texts: Sequence[TokenRows], lanes: Lanes) -> dict[int, Float[Tensor, " d"]]:
    """By layer, the mean output resid_post of the model itself over the tokens whose predictions count, float64."""
    path = run.work / "means.safetensors"
    if not path.exists():
        sums: dict[int, Tensor] = {}

        def work(lane: LanguageModel, number: int) -> dict[int, Tensor]:
            text = texts[number]
            clean = run_clean(lane, text.tokens, text.excluded, run.layers[0])
            counted = text.counted.to(lane.device)
            return {layer: clean.resid_post[layer][:, :-1][counted].double().sum(0).cpu() for layer in clean.attn_out}

        def add(found: dict[int, Tensor]) -> None:
            for layer, each in found.items():
                sums[layer] = sums.get(layer, 0) + each
            bar.update()

        with tqdm(total=len(texts), desc="mean outputs", unit="batch") as bar:
            lanes.run(work, range(len(texts)), add)
        n = sum(int(text.counted.sum()) for text in texts)
        write_tensors(path, {str(layer): each / n for layer, each in sums.items()})
    return {int(layer): mean for layer, mean in load_file(path).items()}


def columns_on(
    run: SetRun, model: LanguageModel, text: TokenRows, means: Mapping[int, Tensor], bar: tqdm
) -> Iterator[Float[Tensor, " predictions"]]:
    """Every column of the table on some sequences, in the order of `columns_of`.

    run: what is run.
    model: runs it.
    text: the sequences.
    means: by layer, of the model's own output.
    bar: counts the runs.
    """
    unembedding = Unembedding.of(model)
    clean = run_clean(model, text.tokens, text.excluded, run.layers[0])
    counted = text.counted.to(model.device)
    following = text.tokens[:, 1:][text.counted].to(model.device)
    found: dict[Column, Tensor] = {PREDICTIONS: torch.ones(len(following), dtype=torch.float64)}
    for layer, mean in means.items():
        own = clean.resid_post[layer][:, :-1][counted].double()
        found[Column("size", None, layer)] = (own - mean.to(own.device)).square().sum(1)
    for start in range(0, len(run.variants), VARIANTS_AT_ONCE):
        some = run.variants[start : start + VARIANTS_AT_ONCE]
        hidden = [clean.hidden[:, :-1][counted]]
        for variant in some:
            after, errors = run_variant(run, model, clean, variant, counted)
            hidden.append(after[:, :-1][counted])
            found |= errors
            bar.update(len(text.tokens))
        made = predictions(unembedding, torch.stack(hidden), following, with_top=True)
        found[CLEAN] = made.ce[0]
        for index, variant in enumerate(some, start=1):
            found[Column("ce", variant)] = made.ce[index]
            found[Column("kl", variant)] = made.kl[index]
            found[Column("top1", variant)] = (made.top[index] == made.top[0]).double()
    return (found[column].cpu() for column in run.columns(model))


def run_variant(
    run: SetRun, model: LanguageModel, clean: CleanRun, variant: Variant, counted: Tensor
) -> tuple[Float[Tensor, "sequences context d"], dict[Column, Float[Tensor, " predictions"]]]:
    """The hidden states of a variant, and the squared error of each layer's output where it replaces all layers.

    run: what is run.
    model: runs it.
    clean: its own run on the same sequences.
    variant: the layers that are replaced.
    counted: bool [sequences, context - 1], the tokens whose predictions count.
    """
    replacements = {layer: run.sides[variant.side][layer] for layer in variant.layers}
    wanted = list(clean.attn_out) if variant.layers == tuple(run.layers) else []
    hidden, outputs = run_replaced(model, clean, replacements, variant.frozen, wanted)
    errors = {}
    for layer, output in outputs.items():
        error = (output[:, :-1][counted].double() - clean.resid_post[layer][:, :-1][counted].double()).square().sum(1)
        errors[Column("error", variant, layer)] = error
    return hidden, errors
