"""Repeated documents left out of a corpus: the first of equal ones stays."""

import json
from collections.abc import Iterator
from dataclasses import replace

import xxhash

from harvest.text.corpus import Corpus
from harvest.text.records import Bad, Document, Repeat


def without_repeats(corpus: Corpus) -> Corpus:
    """The corpus with a Repeat in the place of each document that an earlier one equals.

    Reading from any document on reads the ones before it too, and keeps 64 bits of each document in memory.
    """

    def documents(start: int) -> Iterator[Document | Bad | Repeat]:
        seen: set[int] = set()
        for number, document in enumerate(corpus.documents(0)):
            key = None if isinstance(document, Bad | Repeat) else _key(document)
            repeated = key in seen
            if key is not None:
                seen.add(key)
            if number >= start:
                yield Repeat() if repeated else document

    return replace(corpus, documents=documents)


def _key(document: Document) -> int:
    text = document if isinstance(document, str) else json.dumps(document, sort_keys=True)
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))
