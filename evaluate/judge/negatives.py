"""Negatives for a judge: texts in which a latent is silent, near misses and random ones.

A negative is a text on every token of which the latent was computed, from the cached activations, and is silent.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from evaluate.features.reader import Features
from evaluate.judge.config import JudgeExportConfig
from evaluate.judge.excerpts import Excerpt
from evaluate.judge.quizzes import Quiz
from harvest.model.tokenizer import token_texts
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

NEIGHBOURS = 10
"""Nearest latents from which near misses are taken."""

DRAWN = 4
"""Candidates drawn for each negative that is needed: the latent is active in some."""

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A text that is a negative of a quiz if its latent is silent in it."""

    quiz: int
    """Index into the quizzes."""
    excerpt: Excerpt


def round_robin(lists: Iterable[Iterable[T]]) -> Iterator[T]:
    """One item of each list in turn, until all lists have ended."""
    waiting = [iter(items) for items in lists]
    while waiting:
        for items in waiting.copy():
            try:
                yield next(items)
            except StopIteration:
                waiting.remove(items)


def near_misses(
    quizzes: Sequence[Quiz], features: Features, config: JudgeExportConfig, random: np.random.Generator
) -> Iterator[Candidate]:
    """Contexts of each latent's nearest latents, one context of each latent before a second of any.

    quizzes: whose latents need near misses.
    features: the collected features.
    config: says how long a text is.
    random: orders and cuts the contexts.
    """
    for number, quiz in enumerate(tqdm(quizzes, desc="near misses", unit="latent")):
        shuffled = []
        for latent in nearest_latents(features, quiz.latent):
            contexts = features.records([latent], ["contexts"])[0]["contexts"]
            shuffled.append([contexts[index] for index in random.permutation(len(contexts))])
        for context in itertools.islice(round_robin(shuffled), DRAWN * len(quiz.positives)):
            excerpt = Excerpt.of(context, "near").cut(context["token"], config.context, random)
            yield Candidate(number, excerpt)


def nearest_latents(features: Features, latent: int) -> list[int]:
    """The latents nearest to one, by decoder and by co-activation in turn."""
    row = features.records([latent], ["near_decoder", "near_coactive"])[0]
    in_turn = round_robin([row["near_decoder"], row["near_coactive"]])
    return list(dict.fromkeys(item["feature"] for item in in_turn))[:NEIGHBOURS]


def random_texts(
    quizzes: Sequence[Quiz], store: Store, split: str, config: JudgeExportConfig, random: np.random.Generator
) -> Iterator[Candidate]:
    """Texts drawn at random from a split. Their words are empty until the shard is read.

    quizzes: whose latents need negatives.
    store: the store that was collected from.
    split: the split that was collected.
    config: says how long a text is.
    random: draws shard, sequence and first token.
    """
    recipe = store.manifest.recipe
    width = min(config.context, recipe.context)
    shards = [number for number, shard in enumerate(store.manifest.shards) if shard.split == split]
    sequences = np.array([store.manifest.shards[number].n_sequences for number in shards])
    for number, quiz in enumerate(quizzes):
        for _ in range(DRAWN * len(quiz.positives)):
            index = int(random.choice(len(shards), p=sequences / sequences.sum()))
            excerpt = Excerpt(
                shard=shards[index],
                sequence=int(random.integers(sequences[index])),
                start=int(random.integers(recipe.context - width + 1)),
                words=[""] * width,
                activations=np.full(width, np.nan, np.float32),
                kind="random",
            )
            yield Candidate(number, excerpt)


def add_negatives(
    quizzes: Sequence[Quiz],
    candidates: Sequence[Candidate],
    transcoder: Transcoder,
    store: Store,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Adds to each quiz the candidates in which its latent is silent and that overlap no other text of the quiz.

    quizzes: what `near` and `random` are filled of.
    candidates: near misses and random texts.
    transcoder: computes the latents, on its device.
    store: holds the rows; each shard is read once.
    tokenizer: gives random texts their words.
    """
    silent = silent_excerpts(quizzes, candidates, transcoder, store, tokenizer)
    for index, excerpt in sorted(silent.items()):
        quiz = quizzes[candidates[index].quiz]
        if excerpt.plain and not excerpt.overlaps(quiz.excerpts):
            negatives = quiz.near if excerpt.kind == "near" else quiz.random
            negatives.append(excerpt)


@torch.no_grad()
def silent_excerpts(
    quizzes: Sequence[Quiz],
    candidates: Sequence[Candidate],
    transcoder: Transcoder,
    store: Store,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[int, Excerpt]:
    """By index, the candidates in which their quiz's latent is silent, with their words.

    The parameters are those of `add_negatives`.
    """
    device = transcoder.W_dec.device
    norm = store.norm.to(device)
    silent: dict[int, Excerpt] = {}

    def shard_of(index: int) -> int:
        return candidates[index].excerpt.shard

    with tqdm(total=len(candidates), desc="silence checked", unit="text") as bar:
        for number, indices in itertools.groupby(sorted(range(len(candidates)), key=shard_of), key=shard_of):
            shard = store.manifest.shards[number]
            row_of = store.array(shard, "token_index").long().argsort()
            source = store.array(shard, transcoder.config.source_site)
            tokens = store.array(shard, "tokens")
            for index in indices:
                excerpt = candidates[index].excerpt
                latent = quizzes[candidates[index].quiz].latent
                first = excerpt.sequence * tokens.shape[1] + excerpt.start
                rows = row_of[first : first + len(excerpt.words)]
                rows = rows[rows < shard.kept]  # the others are excluded tokens, on which no latent is measured
                x = transcoder.view(source[rows].to(device), norm)
                if len(rows) and not latent_on(transcoder, x, latent).any():
                    silent[index] = with_words(excerpt, tokens[excerpt.sequence].tolist(), tokenizer)
                bar.update()
    return silent


def latent_on(transcoder: Transcoder, x: Float[Tensor, "rows d_in"], latent: int) -> Float[Tensor, " rows"]:
    """One latent's activations: a column of `encode`, computed without the other columns where the activation allows."""
    if transcoder.config.activation == "topk":
        return transcoder.encode(x)[:, latent]
    pre_acts = x @ transcoder.W_enc[:, latent] + transcoder.b_enc[latent]
    return pre_acts.relu() * (pre_acts > transcoder.threshold[latent])


def with_words(excerpt: Excerpt, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Excerpt:
    """The excerpt with its words, from the token ids of its sequence; a near miss has them already."""
    if excerpt.kind != "random":
        return excerpt
    ids = tokens[excerpt.start : excerpt.start + len(excerpt.words)]
    return replace(excerpt, words=token_texts(tokenizer, ids))
