"""The latents that a judge is asked about, with the texts in which they fire."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluate.features.context_table import QUANTILES
from evaluate.features.reader import Features
from evaluate.judge.config import JudgeExportConfig
from evaluate.judge.excerpts import Excerpt
from store.disk.suggest import command_line
from store.errors import Refused


@dataclass
class Quiz:
    """The texts gathered about one latent."""

    latent: int
    explained: list[Excerpt]
    """Strongest contexts, which the explainer is shown."""
    positives: list[Excerpt]
    """Texts in which it fires, from every quantile."""
    spare: list[Excerpt]
    """Further texts in which it fires, for marks in the wrong places."""
    near: list[Excerpt] = field(default_factory=list)
    """Texts of its nearest latents, in which it is silent."""
    random: list[Excerpt] = field(default_factory=list)
    """Texts drawn at random, in which it is silent."""

    @property
    def excerpts(self) -> list[Excerpt]:
        return [*self.explained, *self.positives, *self.spare, *self.near, *self.random]


def choose_quizzes(features: Features, config: JudgeExportConfig, random: np.random.Generator) -> list[Quiz]:
    """The named latents, or `count` latents at random that have enough samples, with their positives.

    Refused for a named latent that does not exist or has too few samples, and when no latent has enough.
    """
    missing = [latent for latent in config.latents if not 0 <= latent < len(features)]
    if missing:
        raise Refused(f"latent {missing[0]} does not exist; the run has latents 0 to {len(features) - 1}")
    enough = np.flatnonzero(features.columns["fired"] >= QUANTILES * config.per_quantile)
    quizzes: list[Quiz] = []
    for latent in config.latents or random.permutation(enough).tolist():
        contexts = features.records([latent], ["contexts"])[0]["contexts"]
        quiz = begin_quiz(latent, contexts, config, random)
        if quiz is not None:
            quizzes.append(quiz)
        elif config.latents:
            raise Refused(
                f"latent {latent} has fewer than {config.per_quantile} samples in some quantile, outside the contexts that "
                "are explained; leave it out, lower --per-quantile, or collect more with features --samples"
            )
        if not config.latents and len(quizzes) == config.count:
            break
    if not quizzes:
        raise Refused(
            f"no latent has {config.per_quantile} samples in every quantile; lower --per-quantile, or collect more with "
            + command_line("evaluate", "features", run=config.run_directory, force=True, samples=40)
        )
    return quizzes


def begin_quiz(
    latent: int, contexts: Sequence[dict], config: JudgeExportConfig, random: np.random.Generator
) -> Quiz | None:
    """A latent with its positives, from every quantile; None when a quantile has too few.

    No positive overlaps another one or a text that is explained.

    latent: its number.
    contexts: its contexts in features.parquet.
    config: says how many texts are wanted, and how long they are.
    random: orders and cuts the contexts.
    """
    strongest = [context for context in contexts if context["quantile"] == 0]
    explained = [Excerpt.of(context, "explained") for context in strongest[: config.explained]]
    quiz = Quiz(latent, explained, positives=[], spare=[])
    for quantile in range(1, QUANTILES + 1):
        mine = [context for context in contexts if context["quantile"] == quantile]
        n_positives = 0
        for index in random.permutation(len(mine)):
            excerpt = Excerpt.of(mine[index], "positive").cut(mine[index]["token"], config.context, random)
            if not excerpt.plain or excerpt.overlaps(quiz.excerpts):
                continue
            if n_positives < config.per_quantile:
                quiz.positives.append(excerpt)
                n_positives += 1
            else:
                quiz.spare.append(excerpt)
        if n_positives < config.per_quantile:
            return None
    return quiz
