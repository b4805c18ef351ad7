"""`python -m evaluate features`: collects what every latent of a run responds to, and writes it beside the run."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from evaluate.baselines import find_baselines, in_folders
from evaluate.features.collect import Collection, collect, key_of
from evaluate.features.config import FeaturesConfig
from evaluate.features.contexts import SIDE
from evaluate.features.neighbours import by_coactivation, by_decoder
from evaluate.features.records import Relations
from evaluate.features.split_text import SplitText
from evaluate.features.summary import FORMAT_VERSION, CollectionSummary, read_summary
from evaluate.features.write import write_samples
from evaluate.lens import Lens, choose_lens
from evaluate.metrics.stability import stability_of_latents
from evaluate.metrics.usefulness import usefulness
from evaluate.promoted.add import add_promoted, firing
from evaluate.promoted.tokens import PromotedTokens, promoted_or_why_not
from evaluate.runs import check_fits, open_run, store_of
from evaluate.siblings import siblings_of
from harvest.model.tokenizer import load_tokenizer
from store.devices import resolve_device
from store.disk.files import write_text
from store.errors import Refused
from store.layout import COLLECTION_STATE, COLLECTION_SUMMARY, CONFIG, model_slug
from store.shards.origin import write_origin
from store.shards.reader import Store, check_shards
from store.transcoders.layouts import load_run, read_run_config
from store.transcoders.transcoder import Transcoder


def baseline_run(config: FeaturesConfig) -> Path:
    """Saves the baseline that the options name as a run, in a folder beside --run, and returns that folder.

    Refused when the folder is there and holds something else.
    """
    run = open_run(config)
    ours = run.transcoder
    store = run.store
    places = in_folders((config.baseline,), None, store.manifest.recipe.layer, ours) if config.baseline else ()
    [other, *_] = find_baselines(places, None, config.l0, store, ours)  # the nearest first
    check_fits(other, store)
    folder = run.folder.parent / model_slug(other.config.name).strip("-")
    # the store's name for the model: by it later commands find the store
    wanted = other.config.model_copy(update={"model": store.manifest.recipe.model})
    path = folder / CONFIG
    if folder.exists() and not (path.exists() and read_run_config(folder) == wanted):
        raise Refused(f"{folder} is there, and is not {wanted.source}; move it away")
    write_origin(folder, store)
    replace(other, config=wanted).save(folder)
    return folder


def collect_samples(config: FeaturesConfig) -> Path:
    """The folder of a run's activation samples; collects them unless they are there. Refused when run and store do not
    fit."""
    if config.baseline or config.l0:
        config = replace(config, store=store_of(config), run=baseline_run(config), baseline=None, l0=None)
    run = open_run(config)
    transcoder = run.transcoder
    store = run.store
    shards = store.manifest.of_split(config.split)
    seeds = siblings_of(config.run_directory)
    lens = choose_lens(config.lens, store, transcoder.config) if config.promoted_tokens else None
    device = resolve_device(config.device)
    key = key_of(config.run_directory, store, shards, config, seeds)
    done = read_summary(config.folder)
    if done and not config.force and (config.json <= done.json):
        if done.key == key:
            if lens is not None and not (done.promoted_tokens and done.lens_digest == lens.digest):
                add_to(config, done, transcoder, lens, store, device)
            return config.folder
        if lens is not None and done.key == key_of(config.run_directory, store, shards, config, seeds, lens):
            return config.folder  # of an earlier version, with these promoted tokens
    tokenizer = load_tokenizer(store.manifest.recipe, config.tokenizer)
    if config.check:
        check_shards(store, config.split)
    text = SplitText(store, config.split, tokenizer)
    collection = collect(transcoder, store, config, key, len(text.word))
    shown = None
    if lens is not None:
        fires = collection.fired > 0
        recipe = store.manifest.recipe
        shown = promoted_or_why_not(transcoder.W_dec, fires, lens, recipe, tokenizer, device, config.run_directory)
    relations = relate(transcoder, collection, config.neighbours, shown)
    found = usefulness(transcoder, store, device)
    relations = replace(
        relations,
        stability=stability_of_latents(transcoder, [load_run(folder) for folder in seeds]),
        useful=None if found is None else found.by_latent.numpy(),
    )
    write_samples(config.folder, collection, relations, text, transcoder.config.prefix_sizes, config.json)
    summary = summary_of(transcoder, store, collection, config)
    if shown is not None:
        summary = with_lens(summary, shown.lens)
    if relations.stability is not None:
        summary = replace(summary, other_seeds=len(seeds), recurring_share=float(relations.stability.mean()))
    write_summary(config.folder, summary)
    (config.folder / COLLECTION_STATE).unlink(missing_ok=True)
    return config.folder


def add_to(
    config: FeaturesConfig, done: CollectionSummary, transcoder: Transcoder, lens: Lens, store: Store, device: torch.device
) -> None:
    """Adds the tokens that a lens promotes to a finished collection; says why not, where the model cannot be had.

    config: the options.
    done: the collection's summary.
    transcoder: whose latents were collected.
    lens: through which the tokens are read.
    store: names the model.
    device: on which they are searched.
    """
    recipe = store.manifest.recipe
    tokenizer = load_tokenizer(recipe, config.tokenizer)
    fires = firing(config.folder)
    shown = promoted_or_why_not(transcoder.W_dec, fires, lens, recipe, tokenizer, device, config.run_directory)
    if shown is not None:
        add_promoted(config.folder, shown, done.json)
        write_summary(config.folder, with_lens(done, lens))


def write_summary(folder: Path, summary: CollectionSummary) -> None:
    write_text(folder / COLLECTION_SUMMARY, json.dumps(vars(summary), indent=1) + "\n")


def with_lens(summary: CollectionSummary, lens: Lens) -> CollectionSummary:
    """The summary of a collection with promoted tokens, read through a lens."""
    return replace(summary, promoted_tokens=True, lens=lens.name, lens_source=lens.source, lens_digest=lens.digest)


def summary_of(transcoder: Transcoder, store: Store, collection: Collection, config: FeaturesConfig) -> CollectionSummary:
    """The summary of a finished collection, as it is without promoted tokens.

    transcoder: whose latents were collected.
    store: the store that holds the rows.
    collection: counts of all latents.
    config: the options.
    """
    recipe = store.manifest.recipe
    return CollectionSummary(
        format_version=FORMAT_VERSION,
        name=transcoder.config.name,
        model=recipe.model,
        layer=recipe.layer,
        dataset=recipe.dataset,
        store_fingerprint=store.fingerprint,
        split=config.split,
        rows=collection.rows,
        shards=collection.shards,
        d_sae=transcoder.config.d_sae,
        prefix_sizes=transcoder.config.prefix_sizes,
        l0_mean=int(collection.fired.sum()) / max(collection.rows, 1),
        features_with_samples=int((collection.fired > 0).sum()),
        dead_features=int((collection.fired == 0).sum()),
        contexts=config.contexts,
        samples=config.samples,
        tokens_either_side=SIDE,
        coactivation_rows=collection.paired_rows,
        token_counts_exact=not collection.pruned,
        promoted_tokens=False,
        lens=None,
        json=config.json,
        key=collection.key,
    )


def relate(
    transcoder: Transcoder,
    collection: Collection,
    n: int,
    tokens: PromotedTokens | None = None,
) -> Relations:
    """The relations of every latent to the `n` nearest of each kind.

    transcoder: its decoder rows and prefixes.
    collection: the pairs of rows and latents that co-activation is counted from.
    n: neighbours kept of each kind.
    tokens: those that each latent promotes; None without them.
    """
    together, finer = by_coactivation(
        collection.paired_row, collection.paired_latent, collection.paired_rows, transcoder.config.prefix_sizes, n
    )
    decoder, max_cosine = by_decoder(transcoder.W_dec, n)
    return Relations(
        decoder=decoder,
        coactive=together,
        finer=finer,
        promoted=tokens.promoted if tokens else [],
        suppressed=tokens.suppressed if tokens else [],
        lens=tokens.lens.name if tokens else None,
        max_cosine=max_cosine,
    )
