"""`python -m evaluate judge-export`: collected features and their store -> explain.jsonl and items.jsonl.

Detection and fuzzing are those of Paulo et al. 2024 (arXiv 2410.13928). items.jsonl holds the truth beside each question.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from evaluate.features.reader import open_features
from evaluate.features.summary import read_summary
from evaluate.judge.config import JudgeExportConfig
from evaluate.judge.excerpts import Excerpt
from evaluate.judge.negatives import add_negatives, near_misses, random_texts
from evaluate.judge.quizzes import Quiz, choose_quizzes
from evaluate.runs import open_run
from harvest.model.tokenizer import load_tokenizer
from store.devices import resolve_device
from store.disk.files import write_text
from store.disk.suggest import command_line
from store.errors import Refused
from store.layout import EXPLAIN, FEATURES, ITEMS, SAMPLES

Task = Literal["detection", "fuzzing"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question with its truth: a line of items.jsonl, whose keys are these fields."""

    id: str
    latent: int
    task: Task
    text: str
    """What the judge reads; marked for fuzzing."""
    truth: bool
    kind: str
    """`positive`, `near`, `random` or `misplaced`."""
    quantile: int | None
    """Of a positive: 1 (weakest) to 5."""
    shard: int
    sequence: int
    start: int
    n_tokens: int


def export_questions(config: JudgeExportConfig) -> Path:
    """The folder with explain.jsonl and items.jsonl. Refused when too few features have been collected."""
    samples = config.run_directory / SAMPLES
    summary = read_summary(samples)
    if summary is None:
        collect = command_line("evaluate", "features", run=config.run_directory)
        raise Refused(f"{config.run_directory} has no features yet; collect them with {collect}")
    run = open_run(config)
    store = run.store
    if summary.store_fingerprint != store.fingerprint:
        raise Refused(f"the features in {samples} are of store {summary.store_fingerprint}; collect them again")
    features = open_features(samples / FEATURES, (samples / FEATURES).stat().st_mtime_ns)
    tokenizer = load_tokenizer(store.manifest.recipe, config.tokenizer)
    random = np.random.default_rng(config.seed)
    quizzes = choose_quizzes(features, config, random)
    near = list(near_misses(quizzes, features, config, random))
    anywhere = list(random_texts(quizzes, store, summary.split, config, random))
    transcoder = run.transcoder.to(resolve_device(config.device))
    add_negatives(quizzes, near + anywhere, transcoder, store, tokenizer)
    export = f"{summary.key[:6]}{config.seed}.{config.per_quantile}.{config.explained}.{config.context}"
    items: list[Item] = []
    for quiz in quizzes:
        items += items_of(quiz, export, random)
    write_lines(config.folder / EXPLAIN, [explained(quiz) for quiz in quizzes])
    write_lines(config.folder / ITEMS, [asdict(item) for item in items])
    return config.folder


def write_lines(path: Path, records: Sequence[dict]) -> None:
    """Replaces a JSONL file."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


@dataclass(frozen=True)
class Question:
    excerpt: Excerpt
    marked: np.ndarray | None = None
    """bool, by word; None for a text without marks."""


def items_of(quiz: Quiz, export: str, random: np.random.Generator) -> list[Item]:
    """Detection and fuzzing questions about a latent, each as many negatives as positives, in random order.

    Random texts take the place of near misses where these are too few. Each item keeps its kind, and scores are given by
    kind. `export` begins the id of every item, so that answers to another export are recognised.
    """
    questions: dict[Task, list[Question]] = {"detection": detection(quiz), "fuzzing": fuzzing(quiz, random)}
    items = []
    for task, asked in questions.items():
        for number, index in enumerate(random.permutation(len(asked)).tolist()):
            excerpt = asked[index].excerpt
            is_positive = excerpt.kind == "positive"
            items.append(
                Item(
                    id=f"{export}-{quiz.latent}-{task}-{number}",
                    latent=quiz.latent,
                    task=task,
                    text=excerpt.text(asked[index].marked),
                    truth=is_positive,
                    kind=excerpt.kind,
                    quantile=excerpt.quantile if is_positive else None,
                    shard=excerpt.shard,
                    sequence=excerpt.sequence,
                    start=excerpt.start,
                    n_tokens=len(excerpt.words),
                )
            )
    return items


def detection(quiz: Quiz) -> list[Question]:
    """Whether the latent is active in a text: positives, near misses for half as many negatives, and random texts."""
    wanted = len(quiz.positives)
    near = quiz.near[: wanted // 2]
    far = quiz.random[: wanted - len(near)]
    return [Question(excerpt) for excerpt in (*quiz.positives, *near, *far)]


def fuzzing(quiz: Quiz, random: np.random.Generator) -> list[Question]:
    """Whether the marked tokens are those on which the latent is active: marks are right in positives, wrong in others.

    A quarter of the negatives are texts in which the latent is active elsewhere than marked.
    """
    wanted = len(quiz.positives)
    near = quiz.near[: wanted // 2]
    misplaced = [replace(excerpt, kind="misplaced") for excerpt in quiz.spare[: wanted // 4]]
    far = quiz.random[: max(0, wanted - len(near) - len(misplaced))]
    questions = [Question(excerpt, excerpt.strong) for excerpt in (*quiz.positives, *near)]
    n_marked = [int(excerpt.strong.sum()) for excerpt in quiz.positives]
    for excerpt, count in zip((*misplaced, *far), n_marked, strict=False):
        questions.append(Question(excerpt, silent_marks(excerpt, count, random)))
    return questions


def silent_marks(excerpt: Excerpt, count: int, random: np.random.Generator) -> np.ndarray:
    """bool, by word: `count` tokens drawn from those where the latent is silent."""
    marked = np.zeros(len(excerpt.words), bool)
    silent = np.flatnonzero(np.nan_to_num(excerpt.activations) == 0)
    marked[random.permutation(silent)[:count]] = True
    return marked


def explained(quiz: Quiz) -> dict:
    """A line of explain.jsonl: a latent's strongest texts, with the tokens marked on which it fires."""
    return {"latent": quiz.latent, "texts": [excerpt.text(excerpt.strong) for excerpt in quiz.explained]}
