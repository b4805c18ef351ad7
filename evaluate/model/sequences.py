"""Held-out sequences in token order: their tokens alone, or with their cached rows."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from store.shards.documents import documents_of
from store.shards.manifest import ShardEntry, going_on
from store.shards.reader import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRows:
    """Some sequences of one shard without their sites, in token order."""

    tokens: Int[Tensor, "sequences context"]
    excluded: Bool[Tensor, "sequences context"]
    """Tokens that are no rows for a transcoder: BOS, EOS, padding, and others that the store leaves out."""
    document: Int[Tensor, "sequences context"]
    """Number of the document in the store."""
    row: Int[Tensor, "sequences context"]
    """Where the shard's arrays hold each token."""

    @property
    def counted(self) -> Bool[Tensor, "sequences context_less_1"]:
        """Whether a prediction counts: neither its token nor the predicted one is excluded."""
        return ~(self.excluded[:, :-1] | self.excluded[:, 1:])


@dataclass(frozen=True)
class Sequences(TokenRows):
    """Some sequences of one shard with their cached rows, in token order."""

    source: Float[Tensor, "sequences context d_in"]
    """The transcoder's source site as cached."""
    target: Float[Tensor, "sequences context d_out"]
    """mlp_out as cached."""
    resid_mid: Float[Tensor, "sequences context d_out"] | None
    """As cached; None where the store does not have it."""


def tokens_of(store: Store, shard: ShardEntry, wanted: Int[Tensor, " sequences"]) -> TokenRows:
    """The tokens of sequences of a shard, kept and excluded alike."""
    tokens = store.array(shard, "tokens").long()
    first_document = shard.first_document - (shard.name in going_on(store.manifest.shards))
    document = torch.from_numpy(documents_of(tokens.numpy(), store.manifest.recipe.excluded_tokens))
    row_of_token = store.row_of_token(shard)
    return TokenRows(
        tokens=tokens[wanted],
        excluded=(row_of_token >= shard.kept)[wanted],
        document=document[wanted] + first_document,
        row=row_of_token[wanted],
    )


def sequences_of(
    store: Store, shard: ShardEntry, wanted: Int[Tensor, " sequences"], source_site: str = "resid_mid"
) -> Sequences:
    """Sequences of a shard with their cached rows, kept and excluded alike, in token order."""
    text = tokens_of(store, shard, wanted)
    sites = {source_site, "mlp_out", "resid_mid"} & set(store.manifest.recipe.sites)
    cached = {site: store.rows(shard, site, text.row).float() for site in sorted(sites)}
    return Sequences(
        **vars(text),
        source=cached[source_site],
        target=cached["mlp_out"],
        resid_mid=cached.get("resid_mid"),
    )


def sample(store: Store, n_sequences: int, at_once: int = 1, source_site: str = "resid_mid") -> Iterator[Sequences]:
    """About n_sequences held-out sequences, spread evenly over the held-out shards, a few at a time."""
    return (sequences_of(store, *place, source_site) for place in places_of(store, n_sequences, at_once))


SequencePlace = tuple[ShardEntry, Int[Tensor, " sequences"]]
"""A shard, and the numbers of some sequences in it."""


def chosen_places(store: Store, n_sequences: int, at_once: int) -> list[SequencePlace]:
    """All of `places_of`; warns where the held-out shards have fewer."""
    places = list(places_of(store, n_sequences, at_once))
    found = sum(len(wanted) for _, wanted in places)
    if found < n_sequences:
        log.warning(
            "%d held-out sequences were asked for, and %s gives %d: these are taken", n_sequences, store.directory, found
        )
    return places


def places_of(store: Store, n_sequences: int, at_once: int) -> Iterator[SequencePlace]:
    """The places of the sequences of `sample`, at most `at_once` sequences each."""
    shards = store.manifest.of_split("heldout")
    for number, shard in enumerate(shards):
        share = (number + 1) * n_sequences // len(shards) - number * n_sequences // len(shards)
        count = min(share, shard.n_sequences)
        wanted = torch.linspace(0, shard.n_sequences - 1, count).long().unique()
        for start in range(0, len(wanted), at_once):
            yield shard, wanted[start : start + at_once]
