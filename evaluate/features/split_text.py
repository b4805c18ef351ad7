"""The text of a split: its tokens as ids, as words and by document."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from harvest.model.tokenizer import token_texts
from store.shards.documents import documents_of
from store.shards.manifest import Split
from store.shards.reader import Store


class SplitText:
    """The tokens of a split's shards, and the words of its vocabulary."""

    tokens: list[np.ndarray]
    """By shard of the split, token ids [sequences, context]."""
    number: list[int]
    """By shard of the split, the shard's number in the store."""
    context: int
    """Tokens in a sequence."""
    document: list[np.ndarray]
    """By shard of the split and flat token index, the document's number within the shard."""
    word: np.ndarray
    """By token id, its text; empty for ids that do not occur."""
    occurrences: np.ndarray
    """By token id, how often it occurs."""

    def __init__(self, store: Store, split: Split, tokenizer: PreTrainedTokenizerBase) -> None:
        recipe = store.manifest.recipe
        shards = store.manifest.of_split(split)
        self.tokens = [store.array(shard, "tokens").numpy() for shard in shards]
        self.number = [store.manifest.shards.index(shard) for shard in shards]
        self.context = recipe.context
        self.document = [documents_of(tokens, recipe.excluded_tokens).ravel() for tokens in self.tokens]
        self.occurrences = np.bincount(np.concatenate([tokens.ravel() for tokens in self.tokens]))
        ids = np.flatnonzero(self.occurrences)
        self.word = np.full(len(self.occurrences), "", dtype=object)
        self.word[ids] = token_texts(tokenizer, ids.tolist())
