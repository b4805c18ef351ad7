"""What a transcoder costs the language model: its output in the MLP's place, and the change in the model's predictions.

The model is restarted from the cached layer: blocks up to L are replaced by one step that puts in
resid_post = resid_mid (as cached, excluded tokens too) + the output in question, and only what lies above is run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from evaluate.forward import Forward
from evaluate.intervals import Statistic, by_document, difference, estimate, ratio, resample
from harvest.model import LanguageModel, load_model
from store.manifest import ShardEntry
from store.reader import Store
from store.transcoder import Transcoder

SEQUENCES_AT_ONCE = {"cpu": 1, "cuda": 8}
"""By kind of device: predictions over a large vocabulary fill a CPU's memory faster than they use its cores."""
RESTART_TOLERANCE = 0.05
"""Nats per token by which a restart from the cache may differ from the whole model (the cache is rounded to bfloat16)."""


@dataclass(frozen=True)
class Sequences:
    """Some sequences of one shard, in token order."""

    tokens: Int[Tensor, "sequences context"]
    excluded: Bool[Tensor, "sequences context"]
    document: Int[Tensor, "sequences context"]
    source: Float[Tensor, "sequences context d_in"]
    target: Float[Tensor, "sequences context d_out"]


def sequences_of(store: Store, shard: ShardEntry, wanted: Int[Tensor, " sequences"]) -> Sequences:
    """Sequences of a shard with their cached rows, kept and excluded alike, back in their places."""
    tokens = store.array(shard, "tokens").long()
    order = store.array(shard, "token_index").long().argsort()
    excluded = torch.isin(tokens, torch.tensor(store.manifest.recipe.excluded_tokens))
    ends = excluded.clone()
    ends[:, 0] = False
    document = ends.flatten().cumsum(0).view_as(tokens)
    rows = order.view_as(tokens)[wanted]
    source, target = (store.array(shard, site)[rows].float() for site in ("resid_mid", "mlp_out"))
    return Sequences(tokens[wanted], excluded[wanted], document[wanted] + shard.first_document, source, target)


def sample(store: Store, n_sequences: int, at_once: int = 1) -> Iterator[Sequences]:
    """About n_sequences held-out sequences, spread evenly over the held-out shards, a few at a time."""
    shards = store.manifest.of_split("heldout")
    for number, shard in enumerate(shards):
        share = (number + 1) * n_sequences // len(shards) - number * n_sequences // len(shards)
        count = min(share, shard.n_sequences)
        wanted = torch.linspace(0, shard.n_sequences - 1, count).long().unique()
        for part in wanted.split(at_once):
            yield sequences_of(store, shard, part)


@contextmanager
def restarted(model: LanguageModel, resid_post: Float[Tensor, "sequences context d"]) -> Iterator[None]:
    """Within, the model's blocks up to its layer do nothing but hand on resid_post."""
    blocks = [model.bridge.blocks[index] for index in range(model.layer + 1)]
    value = resid_post.to(next(model.bridge.parameters()).dtype)
    for block in blocks:
        block.__dict__["forward"] = lambda *args, **kwargs: value  # the bridge hands plain attributes on to its inside
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def log_probs(
    model: LanguageModel, tokens: Int[Tensor, "sequences context"], resid_post: Tensor | None = None
) -> Float[Tensor, "sequences context vocabulary"]:
    """The model's predictions at every position, from the start or from resid_post of its layer; float32."""
    tokens = tokens.to(model.bridge.cfg.device)
    if resid_post is None:
        logits = model.bridge.original_model(input_ids=tokens, use_cache=False).logits
    else:
        with restarted(model, resid_post.to(tokens.device)):
            logits = model.bridge.original_model(input_ids=tokens, use_cache=False).logits
    return logits.float().log_softmax(-1)


def cross_entropy(log_p: Tensor, tokens: Int[Tensor, "sequences context"]) -> Float[Tensor, "sequences predicted"]:
    """Nats by which each next token surprises; one fewer than there are positions."""
    return -log_p[:, :-1].gather(2, tokens[:, 1:, None].to(log_p.device)).squeeze(2).double()


def kl(log_p: Tensor, log_q: Tensor) -> Float[Tensor, "sequences predicted"]:
    """KL(p || q) of the predictions that cross_entropy judges, in nats."""
    return (log_p[:, :-1].exp() * (log_p[:, :-1] - log_q[:, :-1])).sum(-1).double()


def outputs(transcoder: Transcoder, forward: Forward, part: Sequences, store: Store) -> Iterator[Tensor]:
    """What each prefix puts in the MLP's place; excluded tokens keep the MLP's own output."""
    device = transcoder.W_dec.device
    x = transcoder.view(part.source.flatten(0, 1).to(device), store.norm.to(device))
    recons, _ = forward.prefixes(forward.entries(x), x)
    for recon in recons:
        yield torch.where(part.excluded[..., None].to(device), part.target.to(device), recon.view_as(part.target))


def open_model(store: Store, device: torch.device) -> LanguageModel:
    """The model that made a store. ValueError when it, or its tokenizer, is not the one that the store names."""
    recipe = store.manifest.recipe
    local = recipe.model.startswith("pip:") or Path(recipe.model).is_dir()
    revision = None if local else recipe.model_revision
    model = load_model(recipe.model, recipe.layer, device, getattr(torch, recipe.compute_dtype), revision)
    found, wanted = (model.revision, model.tokenizer_hash), (recipe.model_revision, recipe.tokenizer_hash)
    if found != wanted:
        raise ValueError(
            f"{recipe.model} is now {found}, the store was made with {wanted}; restore that model, or leave it out with "
            "--sequences 0"
        )
    return model


def check_restart(model: LanguageModel, part: Sequences) -> None:
    """ValueError when the cached rows do not restart this model where the whole model would be."""
    whole = cross_entropy(log_probs(model, part.tokens), part.tokens).mean()
    again = cross_entropy(log_probs(model, part.tokens, part.source + part.target), part.tokens).mean()
    if abs(whole - again) > RESTART_TOLERANCE:
        raise ValueError(
            f"restarted from the cache, {model.name} has a cross-entropy of {again:.3f} nats where the whole model has "
            f"{whole:.3f}: the store was not made by this model; harvest again"
        )


@torch.no_grad()
def splice(
    transcoders: Sequence[Transcoder], store: Store, model: LanguageModel, n_sequences: int, all_prefixes: bool
) -> list[dict]:
    """delta_ce, kl, ce_recovered, ce_clean, ce_zero_ablated, ce_mean_ablated of each transcoder, with intervals.

    In nats, over predictions of a token that is not excluded at a token that is not; all on the same sequences. Each is
    {value, ci95}; `minus_first` has paired differences of delta_ce and kl. ce_recovered divides by what ablation costs,
    which is small for one MLP: never quote it alone.
    """
    device = next(model.bridge.parameters()).device
    prepared = [_chosen(t.to(device), all_prefixes) for t in transcoders]
    forwards = [Forward(t) for t in prepared]
    mean = torch.tensor(store.manifest.statistics["mlp_out"].mean, dtype=torch.float32)
    documents, columns = [], []
    at_once = SEQUENCES_AT_ONCE[device.type]
    with tqdm(total=n_sequences, desc="splice", unit="sequence") as bar:
        for number, part in enumerate(sample(store, n_sequences, at_once)):
            if number == 0:
                check_restart(model, part)
            counted = ~(part.excluded[:, :-1] | part.excluded[:, 1:])
            clean = log_probs(model, part.tokens, part.source + part.target)
            found = [cross_entropy(clean, part.tokens)]
            for ablated in (torch.zeros_like(mean), mean):
                output = torch.where(part.excluded[..., None], part.target, ablated)
                found.append(cross_entropy(log_probs(model, part.tokens, part.source + output), part.tokens))
            for transcoder, forward in zip(prepared, forwards, strict=True):
                for output in outputs(transcoder, forward, part, store):
                    spliced = log_probs(model, part.tokens, part.source.to(output.device) + output)
                    found += [cross_entropy(spliced, part.tokens), kl(clean, spliced)]
            documents.append(part.document[:, :-1][counted])
            columns.append(torch.stack([values.cpu()[counted] for values in found], dim=1))
            bar.update(len(part.tokens))
    document = torch.unique(torch.cat(documents), return_inverse=True)[1]
    table = torch.cat(columns)
    return _results(prepared, by_document(document, torch.cat([torch.ones(len(table), 1).double(), table], dim=1)))


def _chosen(transcoder: Transcoder, all_prefixes: bool) -> Transcoder:
    """The transcoder, without its inner prefixes where they are not wanted."""
    if all_prefixes:
        return transcoder
    config = transcoder.config.model_copy(update={"prefix_sizes": transcoder.config.prefix_sizes[-1:]})
    return Transcoder(config, **transcoder.arrays())


N, CLEAN, ZERO, MEAN, FIRST = range(5)


def _results(transcoders: Sequence[Transcoder], sums: Tensor) -> list[dict]:
    resampled = resample(sums)

    def delta(column: int) -> Statistic:
        return lambda s: (s[..., column] - s[..., CLEAN]) / s[..., N]

    def recovered(column: int) -> Statistic:
        return lambda s: (s[..., ZERO] - s[..., column]) / (s[..., ZERO] - s[..., CLEAN])

    results, column, first = [], FIRST, {}
    for transcoder in transcoders:
        sizes = transcoder.config.prefix_sizes
        last = column + 2 * (len(sizes) - 1)
        statistics = {"delta_ce": delta(last), "kl": ratio(last + 1, N), "ce_recovered": recovered(last)}
        shared = {"ce_clean": CLEAN, "ce_zero_ablated": ZERO, "ce_mean_ablated": MEAN}
        every = statistics | {name: ratio(place, N) for name, place in shared.items()}
        result: dict = {name: estimate(statistic, sums, resampled) for name, statistic in every.items()}
        result["delta_ce_per_prefix"] = {
            str(size): estimate(delta(column + 2 * index), sums, resampled) for index, size in enumerate(sizes)
        }
        if first:
            result["minus_first"] = {
                name: estimate(difference(statistics[name], first[name]), sums, resampled) for name in ("delta_ce", "kl")
            }
        first = first or statistics
        results.append(result | {"n_predictions": int(sums[:, N].sum())})
        column = last + 2
    return results
