"""A store described, and its damaged shards harvested again from the documents that the manifest records."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from harvest.config import HarvestConfig
from harvest.corpus import Corpus, is_on_this_machine, open_corpus, resuming
from harvest.info import info
from harvest.loop import recipe_of
from harvest.model import load_model
from harvest.pool import Lanes
from harvest.shard import run_shard
from harvest.tokens import SpecialTokens, pack, tokenize
from store.cli import StoreOptions, parse
from store.devices import resolve_device
from store.disk.files import appearing_whole
from store.disk.lock import WRITER_LOCK, lock_of
from store.disk.remote import StorePath
from store.shards.formats import writer_for
from store.shards.manifest import Manifest, ShardEntry, load_manifest
from store.shards.reader import find_damage
from store.shards.ring import present
from store.shards.writer import shard_arrays


@dataclass(frozen=True, kw_only=True)
class RepairConfig(StoreOptions):
    """Harvest the damaged shards of a store again, with the model, text and options that its manifest records.

    A shard takes its place only when it has the recorded checksum. Killed or interrupted, the same command continues.
    """

    device: str = "auto"
    """auto takes CUDA where there is one. Only the kind of device that made the store gives its very bytes."""
    batch_sequences: int = 32
    """Sequences in one forward pass: give what the harvest had, since it can change the last bit."""


def repair() -> str:
    """What was done. ValueError when a shard does not come out as it was recorded."""
    config = parse(RepairConfig, "python -m harvest repair")
    directory = config.store_directory
    manifest = load_manifest(directory)
    damage = find_damage(directory, present(directory, manifest))
    if not damage:
        return f"{directory}: nothing to repair\n"
    with ExitStack() as stack:
        stack.callback(lock_of(directory / WRITER_LOCK).release)
        harvest_again(config, manifest, set(damage))
    shards = f"{len(damage)} shard{'s' * (len(damage) > 1)}"
    return f"{directory}: {shards} harvested again, byte for byte: {', '.join(damage)}\n"


def harvest_again(config: RepairConfig, manifest: Manifest, damaged: set[str]) -> None:
    """Harvests the damaged shards again. ValueError when that cannot be done here, before anything is replaced."""
    directory, recipe = config.store_directory, manifest.recipe
    writer_for(recipe.format)  # refuses a format that is only read
    harvest = harvest_config(config, manifest)
    corpus = open_corpus(harvest)
    model = load_model(recipe.model, recipe.layer, resolve_device(config.device),
                       recipe.torch_compute_dtype, revision_on_hub(manifest))  # fmt: skip
    now = recipe_of(harvest, recipe.layer, corpus, model, recipe.torch_compute_dtype)
    if now != recipe:
        raise ValueError(f"{directory} cannot be repaired here, its harvest differs: {recipe.differences(now)}")
    lanes = Lanes(model)
    for number, shard in enumerate(manifest.shards):
        if shard.name in damaged:
            repair_shard(harvest, manifest, number, corpus, lanes)


def harvest_config(config: RepairConfig, manifest: Manifest) -> HarvestConfig:
    """The options with which the store was harvested."""
    recipe = manifest.recipe
    local = is_on_this_machine(recipe.dataset)
    dataset, _, subset = (recipe.dataset, "", "") if local else recipe.dataset.partition(":")
    shard_format, _, compression = recipe.format.partition("-")
    return HarvestConfig(
        model=recipe.model, layer=recipe.layer, sites=recipe.sites,
        dataset=dataset, dataset_revision=None if local else recipe.dataset_revision,
        subset=subset or None, split=recipe.dataset_split,
        text_column=recipe.text_column, tokens=manifest.n_tokens, context=recipe.context, store=config.store_directory,
        shard_tokens=recipe.shard_sequences * recipe.context, heldout_every=recipe.heldout_every, dtype=recipe.dtype,
        format=shard_format, compression=compression or "none",  # type: ignore[arg-type]
        batch_sequences=config.batch_sequences, device=config.device, compute_dtype=recipe.compute_dtype, seed=recipe.seed,
    )  # fmt: skip


def revision_on_hub(manifest: Manifest) -> str | None:
    """The commit to load, for a model of the hub; folders and embedded models have hashes instead."""
    revision = manifest.recipe.model_revision
    return None if ":" in revision else revision


def repair_shard(harvest: HarvestConfig, manifest: Manifest, number: int, corpus: Corpus, lanes: Lanes) -> None:
    """Harvests one shard again. ValueError when it comes out otherwise than recorded; the damaged one stays then."""
    shard, recipe, model = manifest.shards[number], manifest.recipe, lanes.models[0]
    texts = islice(resuming(corpus, shard.first_document), shard.next_document - shard.first_document)
    special = SpecialTokens.of(model.tokenizer)
    packed = next(pack(tokenize(texts, model.tokenizer), shard.first_document, special, shard.n_sequences, recipe.context))
    with tqdm(total=shard.rows, unit="tok", unit_scale=True, desc=f"repair {shard.name}") as bar:
        rows = run_shard(lanes, packed, harvest, (recipe.layer,), number, bar.update)[recipe.layer]
    arrays, _ = shard_arrays(rows, number, recipe, model.norm)
    path = harvest.directory / shard.name
    with appearing_whole(path) as partial:
        written = writer_for(recipe.format)(partial, arrays)
        check_bytes(path, partial, shard, written)


def check_bytes(path: StorePath, partial: Path, shard: ShardEntry, written: tuple[int, str]) -> None:
    if written != (shard.bytes, shard.xxh3_128):
        partial.unlink()
        raise ValueError(
            f"{path} comes out with checksum {written[1]}, the manifest says {shard.xxh3_128}; repair on the kind "
            "of machine and with the --batch-sequences that made it, or restore it from a copy"
        )


COMMANDS: dict[str, Callable[[], str]] = {"info": info, "repair": repair}
