"""Questions for a judge of explanations: collected features and their store -> items.jsonl, with the truth in it.

Detection and fuzzing as in Paulo et al. 2024 (arXiv 2410.13928). A negative is a text on every token of which the latent
was computed, from the cached activations, and is silent.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from evaluate.features.context_table import QUANTILES
from evaluate.features.reader import Features, open_features, read_summary
from evaluate.judge.config import JudgeExportConfig
from evaluate.runs import open_run
from harvest.text import load_tokenizer, token_texts
from store.devices import resolve_device
from store.disk.files import write_text
from store.errors import Refused
from store.layout import EXPLAIN, FEATURES, ITEMS, SAMPLES
from store.shards.reader import Store
from store.transcoders.transcoder import Transcoder

OPEN, CLOSE = "<<", ">>"

MARKED = 0.3
"""A token is marked where the latent reaches this share of its strongest activation in the text."""

NEIGHBOURS = 10

DRAWN = 4
"""Times as many negatives are looked at as are needed: the latent is active in some."""


@dataclass(frozen=True)
class Excerpt:
    """Some tokens of a sequence, with the activations of a latent on them; NaN where it is not measured."""

    shard: int
    sequence: int
    start: int
    words: Sequence[str]
    activations: np.ndarray
    kind: str
    quantile: int = 0

    @classmethod
    def of(cls, context: dict, kind: str) -> "Excerpt":
        """A context of features.parquet."""
        activations = np.array([np.nan if a is None else a for a in context["activations"]], np.float32)
        place = {name: context[name] for name in ("shard", "sequence", "start", "quantile")}
        return cls(words=context["tokens"], activations=activations, kind=kind, **place)

    def cut(self, middle: int, width: int, random: np.random.Generator) -> "Excerpt":
        """`width` tokens of it, with a token of the sequence somewhere among them."""
        centre, spare = middle - self.start, len(self.words) - width
        if spare <= 0:
            return self
        low = int(random.integers(max(0, centre - width + 1), min(centre, spare) + 1))
        chosen = slice(low, low + width)
        return replace(self, start=self.start + low, words=self.words[chosen], activations=self.activations[chosen])

    def overlaps(self, others: Sequence["Excerpt"]) -> bool:
        return any(
            (self.shard, self.sequence) == (other.shard, other.sequence)
            and self.start < other.start + len(other.words)
            and other.start < self.start + len(self.words)
            for other in others
        )

    @property
    def strong(self) -> np.ndarray:
        """Tokens to mark."""
        known = np.nan_to_num(self.activations)
        return (known > 0) & (known >= MARKED * known.max(initial=0))

    @property
    def plain(self) -> bool:
        """Whether its text could not be mistaken for marks."""
        text = "".join(self.words)
        return OPEN not in text and CLOSE not in text

    def text(self, marked: np.ndarray | None = None) -> str:
        """Its tokens; neighbouring marked ones share one pair of marks."""
        if marked is None:
            return "".join(self.words)
        runs = itertools.groupby(zip(self.words, marked.tolist(), strict=True), key=lambda pair: pair[1])
        parts = [("".join(word for word, _ in run), on) for on, run in runs]
        return "".join(f"{OPEN}{text}{CLOSE}" if on else text for text, on in parts)


@dataclass
class Quiz:
    """What is gathered about one latent."""

    latent: int
    explained: list[Excerpt]
    positives: list[Excerpt]
    spare: list[Excerpt]
    """Further texts in which it fires, for marks in the wrong places."""
    near: list[Excerpt] = field(default_factory=list)
    random: list[Excerpt] = field(default_factory=list)


def export_questions(config: JudgeExportConfig) -> Path:
    """The folder with explain.jsonl and items.jsonl. Refused when too few features have been collected."""
    samples = config.run_directory / SAMPLES
    summary = read_summary(samples)
    if summary is None:
        raise Refused(f"{config.run_directory} has no features yet; collect them with python -m evaluate features")
    run = open_run(config)
    transcoder, store = run.transcoder, run.store
    if summary["store_fingerprint"] != store.fingerprint:
        raise Refused(f"the features in {samples} are of store {summary['store_fingerprint']}; collect them again")
    features = open_features(samples / FEATURES, (samples / FEATURES).stat().st_mtime_ns)
    tokenizer = load_tokenizer(store.manifest.recipe, config.tokenizer)
    random = np.random.default_rng(config.seed)
    quizzes = choose(features, config, random)
    candidates = [*nearby(quizzes, features, config, random), *anywhere(quizzes, store, summary["split"], config, random)]
    keep_silent(quizzes, candidates, transcoder.to(resolve_device(config.device)), store, tokenizer)
    mark = f"{summary['key'][:6]}{config.seed}.{config.per_quantile}.{config.explained}.{config.context}"
    items = [item for quiz in quizzes for item in items_of(quiz, mark, random)]
    write_lines(config.folder / EXPLAIN, [explained(quiz) for quiz in quizzes])
    write_lines(config.folder / ITEMS, items)
    return config.folder


def write_lines(path: Path, records: Sequence[dict]) -> None:
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def choose(features: Features, config: JudgeExportConfig, random: np.random.Generator) -> list[Quiz]:
    """The latents asked about. Refused for one that is named and has too few samples, or does not exist."""
    if wrong := [latent for latent in config.latents if not 0 <= latent < len(features)]:
        raise Refused(f"latent {wrong[0]} does not exist; the run has latents 0 to {len(features) - 1}")
    enough = np.flatnonzero(features.columns["fired"] >= QUANTILES * config.per_quantile)
    found = []
    for latent in config.latents or random.permutation(enough).tolist():
        quiz = begin(latent, features.records([latent], ["contexts"])[0]["contexts"], config, random)
        if quiz is not None:
            found.append(quiz)
        elif config.latents:
            raise Refused(
                f"latent {latent} has fewer than {config.per_quantile} samples in some quantile, outside the contexts that "
                "are explained; leave it out, lower --per-quantile, or collect more with features --samples"
            )
        if not config.latents and len(found) == config.count:
            break
    if not found:
        raise Refused(
            f"no latent has {config.per_quantile} samples in every quantile; lower --per-quantile, or collect more with "
            "python -m evaluate features --samples 40"
        )
    return found


def begin(latent: int, contexts: Sequence[dict], config: JudgeExportConfig, random: np.random.Generator) -> Quiz | None:
    """A latent's positives, from every quantile, none overlapping another or what is explained; None if it has too few."""
    shown = [Excerpt.of(context, "explained") for context in contexts if context["quantile"] == 0][: config.explained]
    positives: list[Excerpt] = []
    spare: list[Excerpt] = []
    for quantile in range(1, QUANTILES + 1):
        mine = [context for context in contexts if context["quantile"] == quantile]
        taken = 0
        for index in random.permutation(len(mine)):
            window = Excerpt.of(mine[index], "positive").cut(mine[index]["token"], config.context, random)
            if not window.plain or window.overlaps([*shown, *positives, *spare]):
                continue
            (positives if taken < config.per_quantile else spare).append(window)
            taken += 1
        if taken < config.per_quantile:
            return None
    return Quiz(latent, shown, positives, spare)


Candidate = tuple[int, Excerpt]
"""Place in the list of quizzes, and a text that is a negative if the latent is silent in it."""


def nearby(
    quizzes: Sequence[Quiz], features: Features, config: JudgeExportConfig, random: np.random.Generator
) -> Iterator[Candidate]:
    """Texts of each latent's nearest ones, by decoder and by co-activation in turn; one of each before a second of any."""
    for number, quiz in enumerate(tqdm(quizzes, desc="near misses", unit="latent")):
        row = features.records([quiz.latent], ["near_decoder", "near_coactive"])[0]
        pairs = itertools.zip_longest(row["near_decoder"], row["near_coactive"])
        near = list(dict.fromkeys(item["feature"] for pair in pairs for item in pair if item))[:NEIGHBOURS]
        of_each = [features.records([other], ["contexts"])[0]["contexts"] for other in near]
        turns = itertools.zip_longest(*([c[i] for i in random.permutation(len(c))] for c in of_each))
        mixed = [context for turn in turns for context in turn if context]
        for context in mixed[: DRAWN * len(quiz.positives)]:
            yield number, Excerpt.of(context, "near").cut(context["token"], config.context, random)


def anywhere(
    quizzes: Sequence[Quiz], store: Store, split: str, config: JudgeExportConfig, random: np.random.Generator
) -> Iterator[Candidate]:
    """Places drawn at random from the split; their words are filled in where the shard is read."""
    recipe = store.manifest.recipe
    width = min(config.context, recipe.context)
    shards = [number for number, shard in enumerate(store.manifest.shards) if shard.split == split]
    sequences = np.array([store.manifest.shards[number].n_sequences for number in shards])
    for number, quiz in enumerate(quizzes):
        for _ in range(DRAWN * len(quiz.positives)):
            shard = int(random.choice(len(shards), p=sequences / sequences.sum()))
            place = int(random.integers(sequences[shard])), int(random.integers(recipe.context - width + 1))
            yield number, Excerpt(shards[shard], *place, [""] * width, np.full(width, np.nan, np.float32), "random")


@torch.no_grad()
def keep_silent(
    quizzes: Sequence[Quiz], candidates: Sequence[Candidate], transcoder: Transcoder, store: Store,
    tokenizer: PreTrainedTokenizerBase,
) -> None:  # fmt: skip
    """Gives each latent the candidates in which it is silent and that overlap no other text of it; shards are read once."""
    device, norm = transcoder.W_dec.device, store.norm.to(transcoder.W_dec.device)
    silent: dict[int, Excerpt] = {}
    by_shard = sorted(range(len(candidates)), key=lambda index: candidates[index][1].shard)
    groups = itertools.groupby(by_shard, key=lambda index: candidates[index][1].shard)
    with tqdm(total=len(candidates), desc="silence checked", unit="text") as bar:
        for number, group in groups:
            shard = store.manifest.shards[number]
            row_of = store.array(shard, "token_index").long().argsort()
            source = store.array(shard, transcoder.config.source_site)
            tokens = store.array(shard, "tokens")
            for index in group:
                of, window = candidates[index]
                first = window.sequence * tokens.shape[1] + window.start
                rows = row_of[first : first + len(window.words)]
                rows = rows[rows < shard.kept]  # the others are excluded tokens, on which no latent is measured
                x = transcoder.view(source[rows].to(device), norm)
                if len(rows) and not latent_on(transcoder, x, quizzes[of].latent).any():
                    silent[index] = with_words(window, tokens[window.sequence].tolist(), tokenizer)
                bar.update()
    for index, window in sorted(silent.items()):
        quiz = quizzes[candidates[index][0]]
        taken = [*quiz.explained, *quiz.positives, *quiz.spare, *quiz.near, *quiz.random]
        if window.plain and not window.overlaps(taken):
            (quiz.near if window.kind == "near" else quiz.random).append(window)


def latent_on(transcoder: Transcoder, x: Float[Tensor, "rows d_in"], latent: int) -> Float[Tensor, " rows"]:
    """One latent's activations: a column of `encode`, without the others where they do not matter."""
    if transcoder.config.activation == "topk":
        return transcoder.encode(x)[:, latent]
    pre_acts = x @ transcoder.W_enc[:, latent] + transcoder.b_enc[latent]
    return pre_acts.relu() * (pre_acts > transcoder.threshold[latent])


def with_words(window: Excerpt, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Excerpt:
    if window.kind != "random":
        return window
    return replace(window, words=token_texts(tokenizer, tokens[window.start : window.start + len(window.words)]))


def items_of(quiz: Quiz, mark: str, random: np.random.Generator) -> list[dict]:
    """Detection and fuzzing questions about a latent, each as many negatives as positives, in random order.

    Where near misses are too few, random texts take their place; the kind of each is kept, and scores are given by kind.
    """
    wanted = len(quiz.positives)
    near = quiz.near[: wanted // 2]
    far = quiz.random[: wanted - len(near)]
    detection = [(window, None) for window in (*quiz.positives, *near, *far)]
    misplaced = [replace(window, kind="misplaced") for window in quiz.spare[: wanted // 4]]
    fuzzing = [(window, window.strong) for window in quiz.positives]
    fuzzing += [(window, window.strong) for window in near]
    counts = [int(window.strong.sum()) for window in quiz.positives]
    for window, count in zip((*misplaced, *far[: max(0, wanted - len(near) - len(misplaced))]), counts, strict=False):
        fuzzing.append((window, anywhere_silent(window, count, random)))
    items = []
    for task, chosen in (("detection", detection), ("fuzzing", fuzzing)):
        for place, index in enumerate(random.permutation(len(chosen)).tolist()):
            window, marked = chosen[index]
            items.append({
                "id": f"{mark}-{quiz.latent}-{task}-{place}", "latent": quiz.latent, "task": task,
                "text": window.text(marked), "truth": window.kind == "positive", "kind": window.kind,
                "quantile": window.quantile if window.kind == "positive" else None, "shard": window.shard,
                "sequence": window.sequence, "start": window.start, "n_tokens": len(window.words),
            })  # fmt: skip
    return items


def anywhere_silent(window: Excerpt, count: int, random: np.random.Generator) -> np.ndarray:
    """Marks on `count` tokens drawn from those where the latent is silent."""
    marked = np.zeros(len(window.words), bool)
    silent = np.flatnonzero(np.nan_to_num(window.activations) == 0)
    marked[random.permutation(silent)[:count]] = True
    return marked


def explained(quiz: Quiz) -> dict:
    """What an explainer is shown of a latent: its strongest texts, the tokens on which it fires marked."""
    return {"latent": quiz.latent, "texts": [window.text(window.strong) for window in quiz.explained]}
