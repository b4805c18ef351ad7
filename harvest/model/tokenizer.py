"""Token ids as people read them: the tokenizer of a store's model; and the unembedding, read from its weights alone."""

import json
from collections.abc import Iterable
from pathlib import Path

import xxhash
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from harvest.model import embedded
from harvest.model.source import base_of
from store.errors import Refused
from store.hub import TROUBLE, explained, from_hub_or_cache
from store.shards.manifest import Recipe

UNEMBEDDINGS = ("lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight", "wte.weight")
"""Names of the unembedding in weight files, the untied one first."""
FINAL_NORMS = {"model.norm.weight": 1.0, "transformer.ln_f.weight": 0.0, "ln_f.weight": 0.0}
"""Names of the final norm's gain, and what is added to it: Gemma stores w for a gain of 1 + w."""


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
    options = {"clean_up_tokenization_spaces": False}
    return [text[ahead:] for text in tokenizer.batch_decode([[*anchor, index] for index in ids], **options)]


def load_unembedding(model: str, fold_norm: bool = True) -> Float[Tensor, "vocabulary d"]:
    """The unembedding, float32, with the final norm's gain folded in unless that is not wanted; no other weight is read.

    Refused when the model's weights are not in a local folder, or have unknown names.
    """
    folder = Path(base_of(model))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refused(f"{folder} holds no safetensors weights; download the model, or leave --promoted-tokens out")
    place = {name: path for path in files for name in _names(path)}
    unembedding = next((name for name in UNEMBEDDINGS if name in place), None)
    norm = next((name for name in FINAL_NORMS if name in place), None)
    if unembedding is None or norm is None:
        raise Refused(f"{folder} has no unembedding or final norm under a known name; leave --promoted-tokens out")
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    plus = FINAL_NORMS[norm] if architecture.startswith("Gemma") else 0.0
    weight = _read(place[unembedding], unembedding).float()
    return weight * (_read(place[norm], norm).float() + plus) if fold_norm else weight


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
