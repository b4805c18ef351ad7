"""`python -m evaluate features`: collects what every latent of a run responds to, and writes it beside the run."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from evaluate.baselines import find_baselines
from evaluate.features.collect import Collection, collect, key_of
from evaluate.features.config import FeaturesConfig
from evaluate.features.contexts import SIDE
from evaluate.features.neighbours import by_coactivation, by_decoder
from evaluate.features.records import Relations, TokenLogit
from evaluate.features.split_text import SplitText
from evaluate.features.summary import FORMAT_VERSION, CollectionSummary, read_summary
from evaluate.features.write import write_samples
from evaluate.lens import Lens, choose_lens
from evaluate.metrics.stability import stability_of_latents
from evaluate.metrics.usefulness import usefulness
from evaluate.runs import check_fits, open_run, store_of
from evaluate.siblings import siblings_of
from harvest.model.tokenizer import load_tokenizer, load_unembedding, token_texts
from store.devices import resolve_device
from store.disk.files import write_text
from store.errors import Refused
from store.layout import COLLECTION_STATE, COLLECTION_SUMMARY, CONFIG, model_slug
from store.shards.origin import write_origin
from store.shards.reader import Store, check_shards
from store.transcoders.layouts import load_run, read_run_config
from store.transcoders.transcoder import Transcoder

PROMOTED = 10
"""Tokens listed whose logits a latent raises most, and as many whose logits it lowers most."""

BLOCK = 256
"""Latents whose logits are held at once."""


def baseline_run(config: FeaturesConfig) -> Path:
    """Saves the baseline that the options name as a run, in a folder beside --run, and returns that folder.

    Refused when the folder is there and holds something else.
    """
    run = open_run(config)
    ours = run.transcoder
    store = run.store
    l0 = None if config.l0 == "nearest" else config.l0
    [other] = find_baselines([config.baseline] if config.baseline else [], None, l0, store, ours)
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
    key = key_of(config.run_directory, store, shards, config, seeds, lens.digest if lens else "")
    done = read_summary(config.folder)
    if done and done.key == key and not config.force and (config.json <= done.json):
        return config.folder
    tokenizer = load_tokenizer(store.manifest.recipe, config.tokenizer)
    if config.check:
        check_shards(store, config.split)
    text = SplitText(store, config.split, tokenizer)
    promoted: list[list[TokenLogit]] = []
    suppressed: list[list[TokenLogit]] = []
    if lens is not None:
        unembedding = load_unembedding(store.manifest.recipe.model, fold_norm=not lens.through_norm)
        promoted, suppressed = logit_effects(lens.carried(transcoder.W_dec), unembedding, tokenizer)
    collection = collect(transcoder, store, config, key, len(text.word))
    relations = relate(transcoder, collection, config.neighbours, promoted, suppressed, lens)
    found = usefulness(transcoder, store, resolve_device(config.device))
    relations = replace(
        relations,
        stability=stability_of_latents(transcoder, [load_run(folder) for folder in seeds]),
        useful=None if found is None else found.by_latent.numpy(),
    )
    write_samples(config.folder, collection, relations, text, transcoder.config.prefix_sizes, config.json)
    summary = summary_of(transcoder, store, collection, config, lens)
    if relations.stability is not None:
        summary = replace(summary, other_seeds=len(seeds), recurring_share=float(relations.stability.mean()))
    write_text(config.folder / COLLECTION_SUMMARY, json.dumps(vars(summary), indent=1) + "\n")
    (config.folder / COLLECTION_STATE).unlink(missing_ok=True)
    return config.folder


def summary_of(
    transcoder: Transcoder, store: Store, collection: Collection, config: FeaturesConfig, lens: Lens | None
) -> CollectionSummary:
    """The summary of a finished collection.

    transcoder: whose latents were collected.
    store: the store that holds the rows.
    collection: counts of all latents.
    config: the options.
    lens: of promoted tokens; None without them.
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
        promoted_tokens=config.promoted_tokens,
        lens=lens.name if lens else None,
        lens_source=lens.source if lens else None,
        json=config.json,
        key=collection.key,
    )


def relate(
    transcoder: Transcoder,
    collection: Collection,
    n: int,
    promoted: list[list[TokenLogit]],
    suppressed: list[list[TokenLogit]],
    lens: Lens | None = None,
) -> Relations:
    """The relations of every latent to the `n` nearest of each kind.

    transcoder: its decoder rows and prefixes.
    collection: the pairs of rows and latents that co-activation is counted from.
    n: neighbours kept of each kind.
    promoted, suppressed: tokens by latent, or nothing.
    lens: through which these are read.
    """
    together, finer = by_coactivation(
        collection.paired_row, collection.paired_latent, collection.paired_rows, transcoder.config.prefix_sizes, n
    )
    decoder, max_cosine = by_decoder(transcoder.W_dec, n)
    return Relations(
        decoder=decoder,
        coactive=together,
        finer=finer,
        promoted=promoted,
        suppressed=suppressed,
        lens=lens.name if lens else None,
        max_cosine=max_cosine,
    )


@torch.no_grad()
def logit_effects(
    W_dec: Tensor, unembedding: Tensor, tokenizer: PreTrainedTokenizerBase, n: int = PROMOTED
) -> tuple[list[list[TokenLogit]], list[list[TokenLogit]]]:
    """By latent, the tokens whose logits it raises most and those whose logits it lowers most.

    W_dec: [d_sae, d_out], as a lens carries it.
    unembedding: [vocabulary, d_out], with the final norm's gain in it unless the lens leads through that.
    tokenizer: names the tokens.
    n: tokens of each latent.
    """
    raised: list[list[TokenLogit]] = []
    lowered: list[list[TokenLogit]] = []
    for block in tqdm(W_dec.split(BLOCK), desc="promoted tokens", unit_scale=BLOCK, unit="latent"):
        logits = block @ unembedding.T
        raised += most_changed(logits, n, True, tokenizer)
        lowered += most_changed(logits, n, False, tokenizer)
    return raised, lowered


def most_changed(logits: Tensor, n: int, largest: bool, tokenizer: PreTrainedTokenizerBase) -> list[list[TokenLogit]]:
    """The n largest (or smallest) logits of each latent, with their tokens.

    logits: [latents, vocabulary].
    n: tokens of each latent.
    largest: whether the largest are wanted, or the smallest.
    tokenizer: names the tokens.
    """
    top = logits.topk(n, dim=1, largest=largest)
    by_latent: list[list[TokenLogit]] = []
    for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        words = token_texts(tokenizer, ids)
        by_latent.append([{"token": word, "logit": value} for word, value in zip(words, values, strict=True)])
    return by_latent
