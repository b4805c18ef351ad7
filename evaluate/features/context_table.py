"""The contexts of some latents with their words: flat arrays, from which Parquet columns and JSON lists are made."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evaluate.features.collect import Collection
from evaluate.features.contexts import SIDE, Contexts
from evaluate.features.records import Example
from evaluate.features.split_text import SplitText

QUANTILES = 5
"""Groups by activation into which a latent's samples are cut."""

WORDS_BEFORE = 8
"""Tokens of an example before the one that fires."""

WORDS_AFTER = 5


@dataclass(frozen=True)
class ContextTable:
    """The contexts of some latents as flat arrays: a latent's contexts, and a context's tokens, lie between offsets."""

    of_latent: np.ndarray
    """Offsets into the contexts, one more than latents."""
    fields: dict[str, np.ndarray]
    """By context: the columns `quantile`, `activation`, `shard`, `sequence`, `token`, `document` and `start`."""
    of_context: np.ndarray
    """Offsets into the words, one more than contexts."""
    words: np.ndarray
    """The text of every token shown, context after context."""
    activations: np.ndarray
    """float32: the latent's activation on each of these tokens; NaN where it is not measured."""

    @classmethod
    def of(cls, collection: Collection, latents: np.ndarray, text: SplitText) -> "ContextTable":
        """The strongest contexts of each latent, then its samples from the highest quantile to the lowest.

        The latents follow each other without a gap.
        """
        tops = collection.top.of_latents(latents)
        samples = collection.sample.of_latents(latents)
        both = Contexts.concatenate([tops, samples])
        quantile = np.concatenate([np.zeros(len(tops.latent), int), quantiles(samples)])
        order = np.lexsort((-both.value, quantile > 0, both.latent))
        contexts = both.take(order)
        token = contexts.position % text.context
        start = np.maximum(token - SIDE, 0)
        stop = np.minimum(token + SIDE + 1, text.context)
        offsets = np.concatenate([[0], np.cumsum(stop - start)])
        words, activations = shown_tokens(contexts, text, start, offsets)
        fields = {
            "quantile": quantile[order],
            "activation": contexts.value,
            "shard": np.array(text.number, int)[contexts.shard],
            "sequence": contexts.position // text.context,
            "token": token,
            "document": documents_of(contexts, text),
            "start": start,
        }
        of_latent = np.searchsorted(contexts.latent, np.append(latents, latents[-1] + 1))
        return cls(of_latent, fields, offsets, words, activations)

    def example(self, index: int) -> Example:
        """A few words about the strongest firing of the latent with this index in the table."""
        context = self.of_latent[index]
        if context == self.of_latent[index + 1]:
            return {"before": "", "token": "", "after": ""}
        low, high = self.of_context[context : context + 2]
        middle = low + self.fields["token"][context] - self.fields["start"][context]
        first = max(low, middle - WORDS_BEFORE)
        last = min(high, middle + 1 + WORDS_AFTER)
        return {
            "before": "".join(self.words[first:middle]),
            "token": str(self.words[middle]),
            "after": "".join(self.words[middle + 1 : last]),
        }


def shown_tokens(
    contexts: Contexts, text: SplitText, start: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The words and the activations of all tokens shown, context after context.

    contexts: n contexts.
    text: the split that they lie in.
    start: [n], the first token shown of each, in its sequence.
    offsets: [n + 1], where each context's tokens begin in what is returned.
    """
    sequence = contexts.position // text.context
    first = start - contexts.position % text.context + SIDE
    words = np.empty(offsets[-1], dtype=object)
    activations = np.empty(offsets[-1], np.float32)
    for index, (low, high) in enumerate(pairwise(offsets)):
        length = high - low
        row = text.tokens[contexts.shard[index]][sequence[index]]
        words[low:high] = text.word[row[start[index] : start[index] + length]]
        activations[low:high] = contexts.window[index, first[index] : first[index] + length]
    return words, activations


def documents_of(contexts: Contexts, text: SplitText) -> np.ndarray:
    """The document of each context, numbered within its shard."""
    documents = np.empty(len(contexts.latent), int)
    for index, (shard, position) in enumerate(zip(contexts.shard.tolist(), contexts.position.tolist(), strict=True)):
        documents[index] = text.document[shard][position]
    return documents


def quantiles(samples: Contexts) -> np.ndarray:
    """1 (weakest) to QUANTILES: groups of each latent's samples by activation, as equal as can be."""
    order = np.lexsort((samples.value, samples.latent))
    ranked = samples.latent[order]
    low = np.searchsorted(ranked, ranked, side="left")
    high = np.searchsorted(ranked, ranked, side="right")
    quantile = np.empty(len(order), int)
    quantile[order] = (np.arange(len(order)) - low) * QUANTILES // (high - low) + 1
    return quantile
