"""The harvest: shard after shard, from where the store ends to the tokens asked for."""

import importlib.metadata
import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from harvest.config import SITES, HarvestConfig
from harvest.corpus import Corpus, is_on_this_machine, open_corpus
from harvest.model import LanguageModel, load_model, resolve_compute_dtype
from harvest.tokens import PACKING, PackedShard, SpecialTokens, pack, tokenize
from store.devices import resolve_device
from store.manifest import MANIFEST, Manifest, Recipe, load_manifest
from store.writer import ShardRows, StoreWriter

LIBRARIES = ("torch", "transformers", "transformer-lens")
log = logging.getLogger(__name__)


def recipe_of(config: HarvestConfig, corpus: Corpus, model: LanguageModel, compute_dtype: torch.dtype) -> Recipe:
    """What decides the store's numbers, frozen in its manifest."""
    return Recipe(
        model=config.model, model_revision=model.revision, tokenizer_hash=model.tokenizer_hash, layer=config.layer,
        sites=tuple(SITES), dataset=corpus.name, dataset_revision=corpus.revision, dataset_split=config.split,
        text_column=config.text_column, context=config.context, packing=PACKING,
        excluded_tokens=SpecialTokens.of(model.tokenizer).excluded, shard_sequences=config.shard_sequences,
        heldout_every=config.heldout_every, seed=config.seed, format="safetensors", dtype=config.dtype,
        compute_dtype=str(compute_dtype).removeprefix("torch."),  # type: ignore[arg-type]
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
    )  # fmt: skip


def harvest(config: HarvestConfig) -> Manifest:
    """The manifest of the finished store. ValueError for bad input, OSError when the disk is full."""
    done = _already_done(config)
    if done is not None:
        return done
    device = resolve_device(config.device)
    dtype = resolve_compute_dtype(config.compute_dtype, device)
    corpus = open_corpus(config)
    model = load_model(config.model, config.layer, device, dtype, config.model_revision)
    log.info("%s layer %d on %s in %s; text from %s", config.model, config.layer, device, dtype, corpus.name)
    writer = StoreWriter(config.directory, recipe_of(config, corpus, model, dtype), model.norm)
    finished = len(writer.manifest.shards)
    if finished:
        log.info("continuing after %d finished shards of %d", finished, config.n_shards)
    total = config.n_shards * config.shard_tokens
    with tqdm(total=total, initial=finished * config.shard_tokens, unit="tok", unit_scale=True, desc="harvest") as bar:
        for packed in _packed_shards(config, corpus, model, writer.manifest):
            rows = run_shard(model, packed, config.batch_sequences, len(writer.manifest.shards), bar)
            writer.append(rows)
            if len(writer.manifest.shards) == config.n_shards:
                return writer.manifest
    if not writer.manifest.shards:
        raise ValueError(
            f"{corpus.name} is too short: it does not fill one shard of {config.shard_tokens} tokens; "
            "give more text or a smaller --shard-tokens"
        )
    writer.mark_exhausted()
    log.warning("the text ended after %d of %d shards: the store is smaller than asked for",
                len(writer.manifest.shards), config.n_shards)  # fmt: skip
    return writer.manifest


def _already_done(config: HarvestConfig) -> Manifest | None:
    """The manifest of a store that has all that is asked for, judged by the options alone, without loading a model."""
    if not (config.directory / MANIFEST).exists():
        return None
    manifest = load_manifest(config.directory)
    asked: dict[str, object] = {
        name: getattr(config, name)
        for name in ("model", "layer", "context", "seed", "text_column", "shard_sequences", "heldout_every", "dtype")
    }
    asked["dataset"] = config.dataset if config.subset is None else f"{config.dataset}:{config.subset}"
    if config.compute_dtype != "auto":
        asked["compute_dtype"] = config.compute_dtype
    if is_on_this_machine(config.dataset):
        asked["dataset_revision"] = open_corpus(config).revision
    different = [
        f"{name}: {getattr(manifest.recipe, name)!r} != {value!r}"
        for name, value in asked.items()
        if getattr(manifest.recipe, name) != value
    ]
    if different:
        raise ValueError(
            f"{config.directory} holds another harvest ({manifest.fingerprint}): {'; '.join(different)}; "
            "choose another STORE, or delete that one"
        )
    return manifest if manifest.exhausted or len(manifest.shards) >= config.n_shards else None


def _packed_shards(
    config: HarvestConfig, corpus: Corpus, model: LanguageModel, manifest: Manifest
) -> Iterator[PackedShard]:
    start = manifest.shards[-1].next_document if manifest.shards else 0
    documents = tokenize(corpus.documents(start), model.tokenizer)
    return pack(documents, start, SpecialTokens.of(model.tokenizer), config.shard_sequences, config.context)


def run_shard(model: LanguageModel, packed: PackedShard, batch: int, number: int, bar: tqdm) -> ShardRows:
    """The sites of every token of a shard. ValueError at the first value that is not finite or does not add up."""
    parts: dict[str, list[Tensor]] = {site: [] for site in SITES}
    for start in range(0, len(packed.tokens), batch):
        tokens = packed.tokens[start : start + batch]
        sites = model.run(tokens.to(model.bridge.cfg.device))
        check_finite(sites, f"shard {number}", start)
        if number == start == 0:
            check_identity(sites)
        for site, collected in parts.items():
            collected.append(sites[site].flatten(0, 1).cpu())
        bar.update(tokens.numel())
    return ShardRows(
        tokens=packed.tokens, sites={site: torch.cat(collected) for site, collected in parts.items()},
        first_document=packed.first_document, next_document=packed.next_document,
    )  # fmt: skip


def check_finite(sites: dict[str, Tensor], where: str, first_sequence: int) -> None:
    """ValueError naming site, sequence and token of the first value that is NaN or infinite."""
    for site, values in sites.items():
        bad = ~torch.isfinite(values).all(-1)
        if bad.any():
            sequence, position = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{site} is not finite in {where}, sequence {first_sequence + sequence}, token {position}; "
                "finished shards are kept. Try --compute-dtype float32 (or bfloat16 for models trained in it)"
            )


def check_identity(sites: dict[str, Tensor]) -> None:
    """ValueError unless resid_post = resid_mid + mlp_out: the hooks would not be where their names say."""
    mid, out, post = (sites[name].float() for name in ("resid_mid", "mlp_out", "resid_post"))
    tolerance = 2 * torch.finfo(sites["resid_post"].dtype).eps * (mid.abs() + out.abs())
    worst = ((post - mid - out).abs() - tolerance).max().item()
    if worst > 0:
        raise ValueError(f"resid_post differs from resid_mid + mlp_out by {worst:.3g} beyond rounding: wrong hooks")
