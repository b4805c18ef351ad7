"""What a transcoder costs the language model: its output in the MLP's place, and the change in the model's predictions.

The model is restarted from the cached layer: blocks up to L are replaced by one step that puts in
resid_post = resid_mid (as cached, excluded tokens too) + the output in question, and only what lies above is run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from evaluate.estimates import Estimate
from evaluate.intervals import Statistic, by_document, difference, estimate, ratio, resample
from evaluate.metrics.measurement import Spliced, SplicedPrefix
from evaluate.model.unembed import Unembedding, ce_and_kl
from harvest.model import LanguageModel, load_model
from harvest.pool import Lanes
from store.shards.documents import documents_between
from store.shards.manifest import ShardEntry
from store.shards.reader import Store
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder

SEQUENCES_AT_ONCE = {"cpu": 1, "cuda": 8}
"""By kind of device: predictions over a large vocabulary fill a CPU's memory faster than they use its cores."""

OUTPUTS_AT_ONCE = 4
"""Put into the same sequences by one run of the layers above."""

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
    document = torch.from_numpy(documents_between(excluded.numpy()))
    rows = order.view_as(tokens)[wanted]
    source, target = (store.array(shard, site)[rows].float() for site in ("resid_mid", "mlp_out"))
    return Sequences(tokens[wanted], excluded[wanted], document[wanted] + shard.first_document, source, target)


def sample(store: Store, n_sequences: int, at_once: int = 1) -> Iterator[Sequences]:
    """About n_sequences held-out sequences, spread evenly over the held-out shards, a few at a time."""
    return (sequences_of(store, *place) for place in places_of(store, n_sequences, at_once))


SequencePlace = tuple[ShardEntry, Int[Tensor, " sequences"]]


def places_of(store: Store, n_sequences: int, at_once: int) -> Iterator[SequencePlace]:
    """Where those of `sample` lie."""
    shards = store.manifest.of_split("heldout")
    for number, shard in enumerate(shards):
        share = (number + 1) * n_sequences // len(shards) - number * n_sequences // len(shards)
        count = min(share, shard.n_sequences)
        wanted = torch.linspace(0, shard.n_sequences - 1, count).long().unique()
        for start in range(0, len(wanted), at_once):
            yield shard, wanted[start : start + at_once]


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


def hidden_states(
    model: LanguageModel, tokens: Int[Tensor, "sequences context"], resid_post: Tensor | None = None
) -> Float[Tensor, "sequences context d"]:
    """What the model unembeds, from the start or from resid_post of its layer."""
    tokens = tokens.to(model.device)
    body = model.whole.base_model
    if resid_post is None:
        return body(input_ids=tokens, use_cache=False).last_hidden_state
    with restarted(model, resid_post.to(tokens.device)):
        return body(input_ids=tokens, use_cache=False).last_hidden_state


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
    model = load_model(recipe.model, recipe.layer, device, recipe.torch_compute_dtype, revision)
    found, wanted = (model.revision, model.tokenizer_hash), (recipe.model_revision, recipe.tokenizer_hash)
    if found != wanted:
        raise ValueError(
            f"{recipe.model} is now {found}, the store was made with {wanted}; restore that model, or leave it out with "
            "--sequences 0"
        )
    return model


def check_restart(model: LanguageModel, unembedding: Unembedding, part: Sequences) -> None:
    """ValueError when the cached rows do not restart this model where the whole model would be."""
    tokens = part.tokens.to(model.device)
    logits = model.whole(input_ids=tokens, use_cache=False).logits.float()
    whole = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    hidden = hidden_states(model, part.tokens, part.source + part.target)[:, :-1].flatten(0, 1)
    again = ce_and_kl(unembedding, hidden[None], tokens[:, 1:].flatten())[0].mean()
    if abs(whole - again) > RESTART_TOLERANCE:
        raise ValueError(
            f"restarted from the cache, {model.name} has a cross-entropy of {again:.3f} nats where the whole model has "
            f"{whole:.3f}: the store was not made by this model; harvest again"
        )


@torch.no_grad()
def splice(
    transcoders: Sequence[Transcoder], store: Store, model: LanguageModel, n_sequences: int, all_prefixes: bool
) -> "SpliceTable":
    """Every transcoder's output put in the MLP's place, on the same held-out sequences.

    Judged are predictions of a token that is not excluded at a token that is not.
    """
    device = model.device
    prepared = [_chosen(t.to(device), all_prefixes) for t in transcoders]
    forwards = [Forward(t) for t in prepared]
    unembedding = Unembedding.of(model)
    mean = torch.tensor(store.manifest.statistics["mlp_out"].mean, dtype=torch.float32)
    parts = list(places_of(store, n_sequences, SEQUENCES_AT_ONCE[device.type]))
    check_restart(model, unembedding, sequences_of(store, *parts[0]))
    documents, columns = [], []

    @torch.no_grad()  # which holds in one thread only
    def work(lane: LanguageModel, number: int) -> tuple[Tensor, Tensor]:
        part = sequences_of(store, *parts[number])
        counted = ~(part.excluded[:, :-1] | part.excluded[:, 1:])
        put_in = torch.stack([output.to(device) for output in _put_in(part, mean, prepared, forwards, store)])
        hidden = torch.cat([_after(lane, part, outputs, counted) for outputs in put_in.split(OUTPUTS_AT_ONCE)])
        judged = ce_and_kl(unembedding, hidden, part.tokens[:, 1:][counted].to(hidden.device))
        return part.document[:, :-1][counted], torch.cat(judged).T.cpu()

    def take(found: tuple[Tensor, Tensor]) -> None:
        documents.append(found[0])
        columns.append(found[1])
        bar.update(len(parts[len(columns) - 1][1]))

    with tqdm(total=n_sequences, desc="splice", unit="sequence") as bar:
        Lanes(model).run(work, range(len(parts)), take)
    document = torch.unique(torch.cat(documents), return_inverse=True)[1]
    table = torch.cat(columns)
    sums = by_document(document, torch.cat([table, torch.ones(len(table), 1).double()], dim=1))
    return SpliceTable([t.config.prefix_sizes for t in prepared], sums, resample(sums))


def _after(
    model: LanguageModel, part: Sequences, outputs: Float[Tensor, "n sequences context d"], counted: Tensor
) -> Float[Tensor, "n rows d"]:
    """What the model unembeds at the counted tokens, with each of these put in."""
    resid_post = (part.source.to(outputs.device) + outputs).flatten(0, 1)
    hidden = hidden_states(model, part.tokens.repeat(len(outputs), 1), resid_post)
    return hidden.unflatten(0, (len(outputs), -1))[:, :, :-1][:, counted]


def _put_in(
    part: Sequences, mean: Tensor, transcoders: Sequence[Transcoder], forwards: Sequence[Forward], store: Store
) -> Iterator[Tensor]:
    """What is put in the MLP's place: its own output, nothing, its mean, and every prefix of every transcoder."""
    yield part.target
    for ablated in (torch.zeros_like(mean), mean):
        yield torch.where(part.excluded[..., None], part.target, ablated)
    for transcoder, forward in zip(transcoders, forwards, strict=True):
        yield from outputs(transcoder, forward, part, store)


def _chosen(transcoder: Transcoder, all_prefixes: bool) -> Transcoder:
    """The transcoder, without its inner prefixes where they are not wanted."""
    if all_prefixes:
        return transcoder
    config = transcoder.config.model_copy(update={"prefix_sizes": transcoder.config.prefix_sizes[-1:]})
    return replace(transcoder, config=config)


CLEAN, ZERO, MEAN, FIRST = range(4)


@dataclass(frozen=True)
class SpliceTable:
    """What splicing found, as sums by document: every figure in nats, with its interval."""

    prefix_sizes: Sequence[tuple[int, ...]]
    """Of each transcoder, those that were spliced."""
    sums: Float[Tensor, "documents columns"]
    """Cross-entropy of each thing put in, KL of each, and last the number of predictions."""
    resampled: Tensor | None

    def statistic(self, index: int | None, name: str, prefix: int = -1) -> Statistic:
        """`delta_ce`, `kl` or `ce_recovered` of a transcoder (of one of its prefixes); of the mean where index is None.

        ce_recovered divides by what ablation costs, which is small for one MLP: never quote it alone.
        """
        sizes = [len(each) for each in self.prefix_sizes]
        column = MEAN if index is None else FIRST + sum(sizes[:index]) + range(sizes[index])[prefix]
        half = FIRST + sum(sizes)
        return {
            "delta_ce": lambda s: (s[..., column] - s[..., CLEAN]) / s[..., -1],
            "kl": ratio(half + column, -1),
            "ce_recovered": lambda s: (s[..., ZERO] - s[..., column]) / (s[..., ZERO] - s[..., CLEAN]),
        }[name]

    def estimate(self, statistic: Statistic) -> Estimate:
        return estimate(statistic, self.sums, self.resampled)

    def figures(self, index: int | None) -> Spliced:
        """Every figure of one transcoder, or of the mean where index is None."""
        return Spliced(
            delta_ce=self.estimate(self.statistic(index, "delta_ce")),
            kl=self.estimate(self.statistic(index, "kl")),
            ce_recovered=self.estimate(self.statistic(index, "ce_recovered")),
            ce_clean=self.estimate(ratio(CLEAN, -1)),
            ce_zero_ablated=self.estimate(ratio(ZERO, -1)),
            ce_mean_ablated=self.estimate(ratio(MEAN, -1)),
            n_predictions=int(self.sums[:, -1].sum()),
            n_prediction_documents=len(self.sums),
        )

    def by_prefix(self, index: int) -> dict[str, SplicedPrefix]:
        """delta CE and KL of each prefix of a transcoder that was spliced."""
        return {
            str(size): SplicedPrefix(
                delta_ce=self.estimate(self.statistic(index, "delta_ce", place)),
                kl=self.estimate(self.statistic(index, "kl", place)),
            )
            for place, size in enumerate(self.prefix_sizes[index])
        }

    def minus(self, index: int, other: int) -> dict[str, Estimate]:
        """Paired differences of delta_ce and kl."""
        return {
            name: self.estimate(difference(self.statistic(index, name), self.statistic(other, name)))
            for name in ("delta_ce", "kl")
        }
