"""Documents with a BOS of their own, which rows have by themselves: counted, and warned of."""

import logging
from collections.abc import Iterator
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from harvest.model.language_model import LanguageModel
from harvest.text.corpus import Corpus
from harvest.text.records import Bad, Document, Repeat
from harvest.text.tokens import typed_bos

log = logging.getLogger(__name__)


class OddBos:
    """Counts the documents with a BOS where rows have none, and warns at the first."""

    def __init__(self, corpus: Corpus, model: LanguageModel) -> None:
        self.name = corpus.name
        self.tokenizer = model.tokenizer
        self.count = 0

    def watched(self, documents: Iterator[Document | Bad | Repeat], start: int) -> Iterator[Document | Bad | Repeat]:
        """The documents as they are; the first of them has the number `start`."""
        for number, document in enumerate(documents, start):
            complaint = odd_bos(document, self.tokenizer)
            self.count += complaint is not None
            if complaint is not None and self.count == 1:
                log.warning("document %d of %s %s", number, self.name, complaint)
            yield document

    def tell(self) -> None:
        """Logs how many documents there were, if they were more than the first."""
        if self.count > 1:
            log.warning("%s of the documents read of %s have such a BOS", f"{self.count:,}", self.name)


def odd_bos(document: Document | Bad | Repeat, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What becomes of a BOS that a document has of its own, and the cure; None where it has none that matters."""
    if isinstance(document, str):
        bos = typed_bos(document, tokenizer)
        return bos and (
            f"begins with {bos!r}, and rows get BOS by themselves: BOS is there twice, the second time as characters; take "
            "it out of the text"
        )
    if isinstance(document, list) and document and type(document[0]) is int and _is_joined_by_bos(document, tokenizer):
        return (
            "has BOS between its tokens, which rows have at their beginning alone: it is left out, and the texts around it "
            "are joined; put EOS between them, or give each a record of its own"
        )
    return None


def _is_joined_by_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether BOS follows a token of text, with no EOS between them."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if bos == eos or bos not in ids[1:]:
        return False
    unpadded = [index for index in ids if index != pad]
    return any(index == bos and before not in (bos, eos) for before, index in pairwise(unpadded))
