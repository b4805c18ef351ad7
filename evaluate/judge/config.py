"""Options of automatic interpretation: questions for a judge, the judge, and its marks."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from evaluate.config import EvaluateConfig
from store.cli import NotNegative, Options, Positive, Range, Seed
from store.errors import Refused
from store.layout import JUDGE, model_slug


@dataclass(frozen=True, kw_only=True)
class JudgeExportConfig(EvaluateConfig):
    """Write questions for a judge of explanations, from collected features: RUN/judge/explain.jsonl and items.jsonl.

    Detection asks whether a feature is active somewhere in a text. Fuzzing asks whether it is active on the marked tokens
    (Paulo et al. 2024, arXiv 2410.13928). The command `python -m evaluate judge` asks these questions, and `judge-score`
    marks anyone's answers.
    """

    latents: tuple[NotNegative, ...] = ()
    """Latents to ask about. Default: --count of them at random."""
    count: Positive = 100
    """Latents to draw when none is named. Each must have positives of every quantile in text that the explainer does not
    see."""
    per_quantile: Positive = 2
    """Positives from each of the five quantiles of the samples. There are as many negatives as positives in all. Half of
    the negatives are near misses: texts of the nearest latents, in which this latent is silent."""
    explained: Positive = 10
    """Strongest contexts that the explainer sees. No positive overlaps them."""
    context: Annotated[int, Range(4)] = 24
    """Tokens of each text. It is cut around the firing at a random offset, so that the firing's position says nothing."""
    seed: Seed = 0
    """Seed of every random choice."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, where the store's model cannot be reached."""

    @property
    def folder(self) -> Path:
        return self.run_directory / JUDGE


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Options):
    """Ask a language model to explain features and to answer the questions of judge-export; then mark its answers.

    Any server with OpenAI's /v1/chat/completions will do. Each answer is saved as it comes. Interrupted, the same command
    continues.
    """

    run: Path
    """Folder of the run."""
    endpoint: str
    """Address of the server: http://127.0.0.1:8000, with or without /v1."""
    model: str
    """Name of the model on the server."""
    explanations: Path | None = None
    """JSONL with `latent` and `explanation`. Default: the model is asked for explanations."""
    out: Path | None = None
    """Folder for explanations, answers and scores. Default: RUN/judge/MODEL."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key. If it is not set, no key is sent."""
    at_once: Positive = 5
    """Texts in one request, all of one feature."""
    parallel: Positive = 4
    """Requests under way at once."""
    retries: NotNegative = 5
    """Repetitions of a request when the server is busy, fails or gives an answer that cannot be read. 0 for none."""
    wait: Annotated[float, Range(0)] = 1.0
    """Seconds before the first repetition, and twice as long before each further one. 0 for none."""
    timeout: Annotated[float, Range(1)] = 120.0
    """Seconds to wait for an answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"https?://(\[[\w:.]+\]|[^\s/:[]+)(:\d+)?(/\S*)?", self.endpoint):
            raise Refused(f"endpoint is {self.endpoint!r}; it must be an address like http://127.0.0.1:8000")

    @property
    def folder(self) -> Path:
        return self.out or self.run / JUDGE / model_slug(self.model)


@dataclass(frozen=True, kw_only=True)
class JudgeScoreConfig(Options):
    """Mark a judge's answers against the ground truth of judge-export, beside the score of a constant answer."""

    run: Path
    """Folder of the run."""
    answers: Path
    """JSONL with `id` (of items.jsonl) and `answer` (true or false). Scores are written beside it."""
