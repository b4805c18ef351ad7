"""The damaged shards of a store, harvested again from the documents that the manifest records."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from harvest.config import HarvestConfig
from harvest.model.loading import model_of
from harvest.opening import recipe_of
from harvest.pool import Lanes, lanes_of
from harvest.shard import run_shard
from harvest.store_config import RepairConfig
from harvest.text.corpus import open_corpus
from harvest.text.encode import parsed_template
from harvest.text.recorded import options_of
from harvest.text.repeats import without_repeats
from harvest.text.stream import packed_from
from harvest.text.tokens import PackedShard
from store.devices import resolve_device
from store.disk.files import appearing_whole
from store.disk.lock import WRITER_LOCK, lock_of
from store.disk.remote import StorePath
from store.errors import Damaged, Refused
from store.layout import MLP_FILE
from store.mlp.files import save_mlp
from store.mlp.forward import Mlp
from store.shards.formats import writer_for
from store.shards.manifest import Manifest, ShardEntry, load_manifest
from store.shards.reader import damage_of_mlp, find_damage
from store.shards.ring import present
from store.shards.rows import shard_arrays

log = logging.getLogger(__name__)


def repair(config: RepairConfig) -> str:
    """A line that says what was done. Damaged when a shard does not come out as it was recorded."""
    directory = config.store_directory
    manifest = load_manifest(directory)
    damage = find_damage(directory, present(directory, manifest))
    mlp_is_damaged = damage_of_mlp(directory, manifest) is not None
    if not damage and not mlp_is_damaged:
        return f"{directory}: nothing to repair"
    with ExitStack() as stack:
        stack.callback(lock_of(directory / WRITER_LOCK).release)
        harvest_again(config, manifest, set(damage), mlp_is_damaged)
    done = []
    if mlp_is_damaged:
        done.append(f"{MLP_FILE} written again")
    if damage:
        shards = f"{len(damage)} shard{'s' * (len(damage) > 1)}"
        done.append(f"{shards} harvested again, byte for byte: {', '.join(damage)}")
    return f"{directory}: {'; '.join(done)}"


def harvest_again(config: RepairConfig, manifest: Manifest, damaged: set[str], mlp_is_damaged: bool = False) -> None:
    """Harvests the damaged shards again, and writes a damaged MLP. Refused when that cannot be done here, before anything
    is replaced."""
    directory = config.store_directory
    recipe = manifest.recipe
    writer_for(recipe.format)  # refuses a format that is only read
    harvest = harvest_config(config, manifest)
    corpus = open_corpus(harvest)
    if harvest.drop_repeats:
        corpus = without_repeats(corpus)
    device = resolve_device(config.device)
    template = None if harvest.chat_template is None else parsed_template(harvest.chat_template)
    model = model_of(recipe, device)
    if template is not None:
        model.tokenizer.chat_template = template
    now = recipe_of(harvest, recipe.layer, corpus, model, recipe.torch_compute_dtype)
    if now != recipe:
        other = now.chat_template != recipe.chat_template
        cure = "; give the template of the harvest with --chat-template" if other else ""
        raise Refused(f"{directory} cannot be repaired here, its harvest differs: {recipe.differences(now)}{cure}")
    if mlp_is_damaged:
        repair_mlp(directory, manifest, model.mlp_of(recipe.layer))
    ways: list[Lanes] = []
    for number, shard in enumerate(manifest.shards):
        if shard.name not in damaged:
            continue
        same = replace(harvest, batch_sequences=config.batch_sequences or shard.batch_sequences)
        packed = next(packed_from(same, corpus, model, manifest.shards[:number]))
        if not ways:
            ways = [lanes_of(model, same, packed)]
            if ways[0].models[0].plain is not None:
                ways.append(Lanes(model))
        try:
            repair_shard(same, manifest, number, packed, ways[0])
        except Damaged:
            if len(ways) == 1:
                raise
            ways.reverse()
            way = "through" if ways[0].models[0].plain is None else "without"
            log.info("%s comes out otherwise: once more %s TransformerLens's bridge", shard.name, way)
            repair_shard(same, manifest, number, packed, ways[0])


def repair_mlp(directory: StorePath, manifest: Manifest, mlp: Mlp) -> None:
    """Writes mlp.safetensors again. Damaged when it comes out otherwise than recorded."""
    if save_mlp(directory, mlp) != manifest.mlp:
        raise Damaged(
            f"{directory / MLP_FILE} comes out with another checksum than the manifest says; restore it from a copy"
        )


def harvest_config(config: RepairConfig, manifest: Manifest) -> HarvestConfig:
    """The options with which the store was harvested."""
    return HarvestConfig(
        **options_of(manifest.recipe),  # type: ignore[arg-type]
        tokens=manifest.n_tokens,
        store=config.store_directory,
        chat_template=config.chat_template,
        batch_sequences=config.batch_sequences,
        device=config.device,
    )


def repair_shard(harvest: HarvestConfig, manifest: Manifest, number: int, packed: PackedShard, lanes: Lanes) -> None:
    """Harvests one shard again. Damaged when it comes out otherwise than recorded; the file that was there then stays.

    harvest: the options of the harvest, with the batches of this shard.
    packed: the shard's tokens.
    """
    shard = manifest.shards[number]
    recipe = manifest.recipe
    model = lanes.models[0]
    with tqdm(total=shard.rows, unit="tok", unit_scale=True, desc=f"repair {shard.name}") as bar:
        on_device = shard.summed_on is not None and model.device.type != "cpu"
        rows = run_shard(lanes, packed, harvest, (recipe.layer,), number, bar.update, on_device)[recipe.layer]
    arrays, _, _ = shard_arrays(rows, number, recipe, model.norm)
    path = harvest.directory / shard.name
    with appearing_whole(path) as partial:
        written = writer_for(recipe.format)(partial, arrays)
        check_bytes(path, partial, shard, written)


def check_bytes(path: StorePath, partial: Path, shard: ShardEntry, written: tuple[int, str]) -> None:
    """Damaged, and the partial file removed, unless size and checksum of what was written are those recorded."""
    if written != (shard.bytes, shard.xxh3_128):
        partial.unlink()
        raise Damaged(
            f"{path} comes out with checksum {written[1]}, the manifest says {shard.xxh3_128}; repair on the kind "
            "of machine and with the --batch-sequences that made it, or restore it from a copy"
        )
