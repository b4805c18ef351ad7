"""What `features` writes: the collection in words -> feature_NNNNN.json, features.parquet, collection_summary.json."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from evaluate.baselines import find_baselines
from evaluate.features.collect import STATE, Collection, collect, key_of
from evaluate.features.config import FeaturesConfig
from evaluate.features.contexts import SIDE
from evaluate.features.neighbours import by_coactivation, by_decoder
from evaluate.features.reader import read_summary
from evaluate.features.write import (
    Relations,
    Text,
    write_samples,
)
from evaluate.runs import check_fits, open_run, store_of
from harvest.text import load_tokenizer, load_unembedding, token_texts
from store.disk.files import write_text
from store.layout import COLLECTION_SUMMARY, CONFIG, model_slug
from store.shards.reader import Store, check_shards
from store.transcoders.layouts import read_run_config
from store.transcoders.transcoder import Transcoder


def baseline_run(config: FeaturesConfig) -> Path:
    """The folder, beside the run's, in which what it is compared with is a run like any other. ValueError where that folder
    is something else."""
    run = open_run(config)
    ours, store = run.transcoder, run.store
    l0 = None if config.l0 == "nearest" else config.l0
    [other] = find_baselines([config.baseline] if config.baseline else [], None, l0, store, ours)
    check_fits(other, store)
    folder = run.folder.parent / model_slug(other.config.name).strip("-")
    # the store's name for the model: by it later commands find the store
    wanted = other.config.model_copy(update={"model": store.manifest.recipe.model})
    path = folder / CONFIG
    if folder.exists() and not (path.exists() and read_run_config(folder) == wanted):
        raise ValueError(f"{folder} is there, and is not {wanted.source}; move it away")
    replace(other, config=wanted).save(folder)
    return folder


def collect_samples(config: FeaturesConfig) -> Path:
    """The folder of a run's activation samples, made now unless it is there. ValueError when run and store do not fit."""
    if config.baseline or config.l0:
        config = replace(config, store=store_of(config), run=baseline_run(config), baseline=None, l0=None)
    run = open_run(config)
    transcoder, store = run.transcoder, run.store
    shards = store.manifest.of_split(config.split)
    key = key_of(config.run_directory, store, shards, config)
    done = read_summary(config.folder)
    if done and done["key"] == key and not config.force and (config.json <= done["json"]):
        return config.folder
    tokenizer = load_tokenizer(store.manifest.recipe, config.tokenizer)
    if config.check:
        check_shards(store, config.split)
    text = Text(store, config.split, tokenizer)
    logits: tuple[list, list] = ([], [])
    if config.promoted_tokens:
        logits = logit_effects(transcoder.W_dec, load_unembedding(store.manifest.recipe.model), tokenizer)
    collection = collect(transcoder, store, config, key, len(text.word))
    relations = relate(transcoder, collection, config.neighbours, logits)
    write_samples(config.folder, collection, relations, text, transcoder.config.prefix_sizes, config.json)
    summary = summary_of(transcoder, store, collection, config)
    write_text(config.folder / COLLECTION_SUMMARY, json.dumps(summary, indent=1) + "\n")
    (config.folder / STATE).unlink(missing_ok=True)
    return config.folder


def summary_of(transcoder: Transcoder, store: Store, collection: Collection, config: FeaturesConfig) -> dict:
    """collection_summary.json: what was looked at, and what of it is exact."""
    recipe = store.manifest.recipe
    return {
        "format_version": 1, "name": transcoder.config.name, "model": recipe.model, "layer": recipe.layer,
        "dataset": recipe.dataset, "store_fingerprint": store.fingerprint, "split": config.split, "rows": collection.rows,
        "shards": collection.shards, "d_sae": transcoder.config.d_sae, "prefix_sizes": transcoder.config.prefix_sizes,
        "l0_mean": int(collection.fired.sum()) / max(collection.rows, 1),
        "features_with_samples": int((collection.fired > 0).sum()), "dead_features": int((collection.fired == 0).sum()),
        "contexts": config.contexts, "samples": config.samples, "tokens_either_side": SIDE,
        "coactivation_rows": collection.paired_rows, "token_counts_exact": not collection.pruned,
        "promoted_tokens": config.promoted_tokens, "json": config.json, "key": collection.key,
    }  # fmt: skip


def relate(transcoder: Transcoder, collection: Collection, n: int, logits: tuple[list, list]) -> Relations:
    """Every latent's neighbours."""
    together, finer = by_coactivation(
        collection.paired_row, collection.paired_latent, collection.paired_rows, transcoder.config.prefix_sizes, n
    )
    decoder, max_cosine = by_decoder(transcoder.W_dec, n)
    return Relations(decoder, together, finer, *logits, max_cosine)


@torch.no_grad()
def logit_effects(
    W_dec: Tensor, unembedding: Tensor, tokenizer: PreTrainedTokenizerBase, n: int = 10
) -> tuple[list[list[dict]], list[list[dict]]]:
    """The tokens whose logits each latent raises and lowers most, through the final norm's gain, by unit activation."""
    ends: tuple[list, list] = ([], [])
    for block in tqdm(W_dec.split(256), desc="promoted tokens", unit_scale=256, unit="latent"):
        logits = block @ unembedding.T
        for largest, out in zip((True, False), ends, strict=True):
            top = logits.topk(n, dim=1, largest=largest)
            for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                words = token_texts(tokenizer, ids)
                out.append([{"token": w, "logit": v} for w, v in zip(words, values, strict=True)])
    return ends
