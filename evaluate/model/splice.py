"""Splices transcoders into the language model: cross-entropy and KL with their output in the MLP's place.

The model is restarted from the cached layer. One step replaces the blocks up to L: it puts in
resid_post = resid_mid (as cached, excluded tokens too) + the output in question. Only the blocks above L are run.
Where the store has no resid_mid, the blocks up to L are run once for what they add to mlp_out: resid_mid, or resid_pre +
attn_out where attention and MLP run side by side.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from evaluate.intervals import by_document, resample
from evaluate.metrics.accumulate import sites_of
from evaluate.model.sequences import Sequences, chosen_places, places_of, sequences_of
from evaluate.model.splice_table import SpliceTable
from evaluate.model.unembed import ce_and_kl
from harvest.model.language_model import LanguageModel
from harvest.model.loading import model_that_made
from harvest.model.unembedding import Unembedding
from harvest.pool import Lanes
from store.devices import of_kind
from store.errors import Refused
from store.shards.metric import estimated_kl, read_metric
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

SEQUENCES_AT_ONCE = {"cpu": 1, "cuda": 8}
"""By kind of device. Predictions over a large vocabulary fill a CPU's memory before they use its cores."""

OUTPUTS_AT_ONCE = 4
"""Outputs that one run of the layers above puts into the same sequences."""

RESTART_TOLERANCE = 0.05
"""Nats per token by which a restart from the cache may differ from the whole model (the cache is rounded to bfloat16)."""


def beside_mlp(part: Sequences, model: LanguageModel) -> Float[Tensor, "sequences context d_out"]:
    """What the model's block adds to mlp_out: resid_mid as cached, else from a run of the model up to its layer."""
    if part.resid_mid is not None:
        return part.resid_mid
    return sum_of_sites(model.run_layers(part.tokens, (model.layer,), model.beside_mlp)[model.layer], model).cpu()


def sum_of_sites(sites: Mapping[str, Tensor], model: LanguageModel) -> Float[Tensor, "sequences context d_out"]:
    """What the model's block adds to mlp_out, from its sites."""
    first, *others = (sites[site].float() for site in model.beside_mlp)
    return sum(others, start=first)


@contextmanager
def restarted(model: LanguageModel, resid_post: Float[Tensor, "sequences context d"], layer: int) -> Iterator[None]:
    """Within the context, the model's blocks up to a layer only hand on resid_post."""
    blocks = [model.bridge.blocks[index] for index in range(layer + 1)]
    resid_post = resid_post.to(next(model.bridge.parameters()).dtype)
    value = (resid_post, None) if model.blocks_return_tuples else resid_post  # None: attention weights
    for block in blocks:
        block.__dict__["forward"] = lambda *args, **kwargs: value  # the bridge hands plain attributes on to its inside
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def hidden_states(
    model: LanguageModel, tokens: Int[Tensor, "sequences context"], resid_post: Tensor | None = None
) -> Float[Tensor, "sequences context d"]:
    """The hidden states that the model unembeds; blocks up to its layer are skipped when resid_post is given."""
    tokens = tokens.to(model.device)
    body = model.whole.base_model
    if resid_post is None:
        return body(input_ids=tokens, use_cache=False).last_hidden_state
    with restarted(model, resid_post.to(tokens.device), model.layer):
        return body(input_ids=tokens, use_cache=False).last_hidden_state


def outputs(transcoder: Transcoder, forward: Forward, part: Sequences, store: Store) -> Iterator[Tensor]:
    """The output of each prefix for some sequences; excluded tokens keep the MLP's own output.

    transcoder, forward: the transcoder, and its prefixes run sparsely.
    part: the sequences.
    store: has the norm of the layer.
    """
    device = transcoder.W_dec.device
    x = transcoder.view(part.source.flatten(0, 1).to(device), store.norm.to(device))
    for recon in forward.prefixes(forward.entries(x), x).recon:
        yield torch.where(part.excluded[..., None].to(device), part.target.to(device), recon.view_as(part.target))


def open_model(store: Store, device: torch.device) -> LanguageModel:
    """The language model that made a store. Refused when its revision or tokenizer is not the store's."""
    return model_that_made(store.manifest.recipe, device, "leave it out with --sequences 0")


def check_model(store: Store, model: LanguageModel) -> float:
    """Seconds that one output in one sequence takes. Refused as `check_restart` says, before anything is measured."""
    places = list(places_of(store, 1, of_kind(SEQUENCES_AT_ONCE, model.device)))
    return check_restart(model, Unembedding.of(model), sequences_of(store, *places[0], "mlp_out"))


@torch.no_grad()
def check_restart(model: LanguageModel, unembedding: Unembedding, part: Sequences) -> float:
    """Seconds that a restarted run takes, by sequence. Refused when the model predicts otherwise from the cached rows than
    from the beginning."""
    tokens = part.tokens.to(model.device)
    logits = model.whole(input_ids=tokens, use_cache=False).logits.float()
    whole = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    beside = beside_mlp(part, model)
    started = time.perf_counter()
    hidden = hidden_states(model, part.tokens, beside + part.target)[:, :-1].flatten(0, 1)
    again = ce_and_kl(unembedding, hidden[None], tokens[:, 1:].flatten())[0].mean()
    if abs(whole - again) > RESTART_TOLERANCE:
        raise Refused(
            f"restarted from the cache, {model.name} has a cross-entropy of {again:.3f} nats where the whole model has "
            f"{whole:.3f}: the store was not made by this model; harvest again"
        )
    return (time.perf_counter() - started) / len(part.tokens)


@torch.no_grad()
def splice(
    transcoders: Sequence[Transcoder], store: Store, model: LanguageModel, n_sequences: int, all_prefixes: bool
) -> SpliceTable:
    """Puts every transcoder's output in the MLP's place, on the same held-out sequences.

    A prediction counts where neither its token nor the predicted one is excluded.

    transcoders: runs to splice; the same documents are resampled for all.
    store: held-out sequences with their cached rows.
    model: the language model that the store was made with.
    n_sequences: about how many, spread over the held-out shards.
    all_prefixes: whether every prefix is spliced, or only all latents.
    """
    device = model.device
    source_site, target_site = sites_of(transcoders)
    prepared = [(each if all_prefixes else each.whole()).to(device) for each in transcoders]
    forwards = [Forward(transcoder) for transcoder in prepared]
    unembedding = Unembedding.of(model)
    mean = torch.tensor(store.manifest.statistics[target_site].mean, dtype=torch.float32)
    metric = read_metric(store, target_site)
    fisher = None if metric is None else metric.fisher.float().to(device)
    places = chosen_places(store, n_sequences, of_kind(SEQUENCES_AT_ONCE, device))
    check_restart(model, unembedding, sequences_of(store, *places[0], source_site))
    documents: list[Tensor] = []
    columns: list[Tensor] = []

    @torch.no_grad()  # holds in one thread only
    def measure(lane: LanguageModel, number: int) -> tuple[Tensor, Tensor]:
        part = sequences_of(store, *places[number], source_site)
        beside = beside_mlp(part, lane).to(device)
        counted = part.counted
        put_in = torch.stack([output.to(device) for output in _put_in(part, mean, prepared, forwards, store)])
        estimated = []
        if fisher is not None:
            some = [estimated_kl(outputs - part.target.to(device), fisher) for outputs in put_in.split(OUTPUTS_AT_ONCE)]
            estimated.append(torch.cat(some)[:, :, :-1][:, counted])
        hidden = torch.cat([_after(lane, part, beside + outputs, counted) for outputs in put_in.split(OUTPUTS_AT_ONCE)])
        ce, kl = ce_and_kl(unembedding, hidden, part.tokens[:, 1:][counted].to(hidden.device))
        return part.document[:, :-1][counted], torch.cat([ce, kl, *estimated]).T.cpu()

    def add(measured: tuple[Tensor, Tensor]) -> None:
        _, sequences = places[len(columns)]
        documents.append(measured[0])
        columns.append(measured[1])
        bar.update(len(sequences))

    with tqdm(total=n_sequences, desc="splice", unit="sequence") as bar:
        Lanes(model).run(measure, range(len(places)), add)
    document = torch.unique(torch.cat(documents), return_inverse=True)[1]
    table = torch.cat(columns)
    sums = by_document(document, torch.cat([table, torch.ones(len(table), 1).double()], dim=1))
    return SpliceTable([transcoder.config.prefix_sizes for transcoder in prepared], sums, resample(sums))


def _after(
    model: LanguageModel, part: Sequences, resid_post: Float[Tensor, "n sequences context d"], counted: Tensor
) -> Float[Tensor, "n rows d"]:
    """The hidden states that the model unembeds at the counted tokens, restarted from each output of the block."""
    hidden = hidden_states(model, part.tokens.repeat(len(resid_post), 1), resid_post.flatten(0, 1))
    return hidden.unflatten(0, (len(resid_post), -1))[:, :, :-1][:, counted]


def _put_in(
    part: Sequences, mean: Tensor, transcoders: Sequence[Transcoder], forwards: Sequence[Forward], store: Store
) -> Iterator[Tensor]:
    """Everything put in the MLP's place, in the order of `PutIn`: its own output, nothing, its mean, every prefix."""
    yield part.target
    for ablated in (torch.zeros_like(mean), mean):
        yield torch.where(part.excluded[..., None], part.target, ablated)
    for transcoder, forward in zip(transcoders, forwards, strict=True):
        yield from outputs(transcoder, forward, part, store)
