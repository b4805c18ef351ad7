"""Token ids as people read them: the tokenizer of a store's model."""

from collections.abc import Iterable
from pathlib import Path

import xxhash
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harvest.model import embedded
from harvest.model.source import base_of
from store.errors import Refused
from store.hub import TROUBLE, explained, from_hub_or_cache
from store.shards.manifest import Recipe


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a manifest calls tokenizer_hash."""
    vocabulary = "\n".join(f"{token}\t{index}" for token, index in sorted(tokenizer.get_vocab().items()))
    return xxhash.xxh3_128_hexdigest(vocabulary.encode())


def check_ids(tokenizer: PreTrainedTokenizerBase, rows: int, model: str) -> None:
    """Refused when BOS, EOS, or a token that text can hold has an id for which the model has no embedding.

    Other special tokens may lie beyond (Gemma 3's image token does): text never gives them.

    rows: of the embedding.
    """
    for role in ("bos", "eos"):
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None and index >= rows:
            token = getattr(tokenizer, f"{role}_token")
            raise Refused(
                f"the tokenizer of {model} has {token!r} with id {index} as {role.upper()}, but the model has {rows} "
                "embeddings: it was made without one; put the tokenizer that the model was trained with beside the weights"
            )
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer.get_vocab().items()
    beyond = sorted((index, token) for token, index in ids if index >= rows and index not in special)
    if beyond:
        index, token = beyond[0]
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise Refused(
            f"the tokenizer of {model} knows {token!r} with id {index}{more}, but the model has {rows} embeddings: tokens "
            "were added without resizing the model; take them out of the tokenizer's files, or resize the model"
        )


def load_tokenizer(recipe: Recipe, source: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that wrote a store, from its model or from a folder. Refused when it is not that one."""
    if source is not None and not source.exists():
        raise Refused(f"tokenizer is {source}, which does not exist; give the folder that holds tokenizer.json")
    place = str(source) if source else base_of(recipe.model)
    try:
        if source is None and embedded.is_embedded(recipe.model):  # its one file says all about ids and texts, sooner
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(place) / "tokenizer.json"))
        elif Path(place).exists():
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        else:
            tokenizer = from_hub_or_cache(
                lambda cached: AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=cached)
            )
    except (*TROUBLE, ValueError) as error:
        raise explained(error, f"the tokenizer of {place}", "give its folder with --tokenizer") from None
    found = vocabulary_hash(tokenizer)
    if found != recipe.tokenizer_hash:
        raise Refused(
            f"the tokenizer of {place} has hash {found}, but the store was made with {recipe.tokenizer_hash}; "
            "give that one's folder with --tokenizer"
        )
    return tokenizer


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """The text that each token adds to what stands before it; spaces in front are kept."""
    anchor = tokenizer.encode(":", add_special_tokens=False)[-1:]
    ahead = len(tokenizer.decode(anchor))
    texts = [[*anchor, index] for index in ids]
    if not texts:  # decoded as one empty text
        return []
    return [text[ahead:] for text in tokenizer.batch_decode(texts, clean_up_tokenization_spaces=False)]
