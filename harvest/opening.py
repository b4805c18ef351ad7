"""What a harvest runs on, opened: the text, the model and the recipe that the manifest will hold."""

import importlib.metadata
import logging
from dataclasses import replace

import torch

from harvest.config import HarvestConfig
from harvest.model.batch import sequences_that_fit
from harvest.model.language_model import LanguageModel
from harvest.model.loading import load_model, resolve_compute_dtype
from harvest.preflight import Visit
from harvest.ranks import Rank
from harvest.space import disk_shortage
from harvest.text.corpus import Corpus, open_corpus
from harvest.text.encode import lost_markers, parsed_template, template_hash
from harvest.text.fit import fit_shards, within_text
from harvest.text.repeats import without_repeats
from harvest.text.stream import check_tokenizer, documents_from
from harvest.text.tokens import PACKING, SpecialTokens
from store.devices import resolve_device, why_float32
from store.errors import Refused
from store.mlp.forward import Mlp
from store.shards.formats import FORMATS
from store.shards.recipe import Recipe

LIBRARIES = ("torch", "transformers", "transformer-lens")
log = logging.getLogger(__name__)


def open_all(config: HarvestConfig, rank: Rank) -> tuple[Corpus, LanguageModel, torch.dtype]:
    """The text, the model up to the highest layer asked for, and the dtype that it runs in."""
    device = resolve_device(rank.device(str(resolve_device(config.device))))
    dtype = resolve_compute_dtype(config.compute_dtype, device)
    reason = why_float32(device)
    if reason is not None and config.compute_dtype == "auto":
        log.info("%s", reason)
    corpus = open_corpus(config)
    if config.drop_repeats:
        corpus = without_repeats(corpus)
    template = None if config.chat_template is None else parsed_template(config.chat_template)
    model = load_model(
        config.model,
        max(config.layers),
        device,
        dtype,
        revision=config.model_revision,
        device_map=config.device_map,
        context=config.context,
        model_class=config.model_class,
    )
    model.check_sites(config.sites, config.layers)
    if config.keeps_mlp:
        for layer in config.layers:
            check_mlp(model.mlp_of(layer), config)
    check_tokenizer(config, model)
    if template is not None:
        model.tokenizer.chat_template = template
    if config.chat is not None:
        template_hash(model.tokenizer)  # refuses a tokenizer without a template
        for said in lost_markers(model.tokenizer):
            log.warning("%s", said)
    layers = ", ".join(map(str, config.layers))
    log.info("%s layer %s on %s in %s; text from %s", config.model, layers, device, dtype, corpus.described)
    return corpus, model, dtype


def check_mlp(mlp: Mlp, config: HarvestConfig) -> None:
    """Refused unless the site that an MLP reads is to be stored."""
    reads = mlp.norm.reads
    if reads not in config.sites:
        raise Refused(
            f"the MLP of {config.model} reads {reads}, and sites are {', '.join(config.sites)}; give --sites "
            f"{reads},mlp_out"
        )


def mlp_bytes(config: HarvestConfig, model: LanguageModel) -> int:
    """Bytes of the MLP that a layer's store keeps; 0 where it keeps none."""
    return model.mlp_of(config.layers[0]).n_bytes if config.keeps_mlp else 0


def fitted(stores: Visit, corpus: Corpus, model: LanguageModel) -> HarvestConfig:
    """The options with shards that the text can fill, held-out ones among them. Refused where there are none."""
    if any(stores.finished_shards.values()):
        return stores.config
    return fit_shards(stores.config, documents_from(corpus, model, 0), SpecialTokens.of(model.tokenizer), corpus.described)


def with_batch(stores: Visit, config: HarvestConfig, model: LanguageModel) -> HarvestConfig:
    """The options with the sequences that the model runs at once: those asked for, those of a store that is continued, or
    what the GPU's memory is made for."""
    if config.batch_sequences is not None or model.device.type == "cpu":
        return config
    before = [manifest.shards[-1].batch_sequences for manifest in stores.manifests.values() if manifest.shards]
    chosen = next(filter(None, before), None) or sequences_that_fit(model, len(config.layers), config.context)
    if chosen is not None:
        log.info("%d sequences of %d tokens at once", chosen, config.context)
    return replace(config, batch_sequences=chosen)


def bounded(stores: Visit, config: HarvestConfig, corpus: Corpus, model: LanguageModel) -> HarvestConfig:
    """The options with no more tokens than the text has, where it was seen to be short, or the disk is too small for all
    tokens asked for."""
    shrunk = config.tokens_a_shard != stores.config.tokens_a_shard
    if shrunk or disk_shortage(config, model.d_model, stores.finished_shards, mlp_bytes(config, model)):
        return within_text(config, documents_from(corpus, model, 0), SpecialTokens.of(model.tokenizer))
    return config


def recipe_of(
    config: HarvestConfig, layer: int, corpus: Corpus, model: LanguageModel, compute_dtype: torch.dtype
) -> Recipe:
    """What decides the numbers of a layer's store, frozen in its manifest."""
    libraries = (*LIBRARIES, *FORMATS[config.shard_format].libraries)
    return Recipe(
        model=config.model,
        model_revision=model.revision,
        tokenizer_hash=model.tokenizer_hash,
        layer=layer,
        sites=config.sites,
        dataset=corpus.name,
        dataset_revision=corpus.revision,
        dataset_split=config.split,
        text_column=config.text_column,
        context=config.context,
        packing=PACKING,
        excluded_tokens=SpecialTokens.of(model.tokenizer).excluded,
        shard_sequences=config.shard_sequences,
        heldout_every=config.heldout_every,
        seed=config.seed,
        format=config.shard_format,
        dtype=config.dtype,
        compute_dtype=str(compute_dtype).removeprefix("torch."),  # type: ignore[arg-type]
        libraries={name: importlib.metadata.version(name) for name in libraries},
        chat_template=None if config.chat is None else template_hash(model.tokenizer),
        **config.recorded_when_set,  # type: ignore[arg-type]
    )
