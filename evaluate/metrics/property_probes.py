"""How well single latents tell properties of a token's text: sparse probing, and targeted probe perturbation."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evaluate.estimates import Estimate
from evaluate.intervals import Statistic, difference, estimate, resample
from evaluate.metrics.measurement import PropertyProbes
from evaluate.metrics.probes import MIN_WORDS, TARGET, Fitted, Probe, Reading, fitted_once, most_different
from evaluate.metrics.tasks import PROPERTIES, Examples
from store.errors import Refused
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from store.views import Norm

KS = (1, 2, 5)

PROPERTY_ROWS = 2000


def properties(forward: Forward, norm: Norm, fit: Examples, test: Examples, fitted: Fitted) -> PropertyProbes:
    """Sparse probing and targeted perturbation over PROPERTIES of the token's text. Refused when too few tokens have any.

    Sparse probing (SAEBench): balanced accuracy of a probe on the one latent that differs most between the classes; more
    latents, and the whole input, in `sparse_probing_by_k`. TPP (arXiv 2411.18895): zero a property's five latents in the
    reconstruction; by how much its own probe on the target loses more accuracy there than the other properties' probes.
    Intervals: rows drawn again, the probes held fixed.
    """
    reading = Reading(forward, norm, fit)
    reading_test = Reading(forward, norm, test)
    labels = {}
    for name, pattern in PROPERTIES.items():
        sides = [np.array([bool(pattern.search(text)) for text in found.text]) for found in (fit, test)]
        if min(*(side.sum() for side in sides), *((~side).sum() for side in sides)) >= MIN_WORDS:
            labels[name] = sides
    if not labels:
        raise Refused(
            f"no property of tokens has {MIN_WORDS} kinds of token with it and {MIN_WORDS} without it; "
            "harvest more tokens, or leave the probes out with --no-probes"
        )
    chosen = {name: most_different(reading, is_it, max(KS)) for name, (is_it, _) in labels.items()}
    scores = Scores()
    accuracy = sparse_probing(forward.transcoder.config.view, reading, reading_test, labels, chosen, scores, fitted)
    targeted = targeted_perturbation(forward.transcoder, reading, reading_test, labels, chosen, scores, fitted)
    by_k = {k: scores.estimate(mean_of(each)) for k, each in accuracy.items()}
    return PropertyProbes(
        sparse_probing=by_k["1"],
        sparse_probing_2=by_k["2"],
        sparse_probing_5=by_k["5"],
        sparse_probing_all=by_k["all"],
        sparse_probing_by_k={k: each.value for k, each in by_k.items()},
        tpp=scores.estimate(mean_of(targeted)),
        properties=tuple(labels),
    )


Labels = dict[str, list[np.ndarray]]
"""By property, whether each token to fit on, and each token to test, has it."""


def sparse_probing(
    view: str,
    reading: Reading,
    reading_test: Reading,
    labels: Labels,
    chosen: dict[str, np.ndarray],
    scores: "Scores",
    fitted: Fitted,
) -> dict[str, list[Statistic]]:
    """By number of latents, the accuracies of probes on so many of the `chosen` ones; under `all`, of the whole input."""
    accuracy: dict[str, list[Statistic]] = {str(k): [] for k in (*KS, "all")}
    for name, (is_it, is_it_test) in labels.items():
        for k in KS:
            probe = Probe(reading.columns(chosen[name][:k]), is_it)
            accuracy[str(k)].append(scores.of(probe, reading_test.columns(chosen[name][:k]), is_it_test))
        whole = fitted_once(fitted, view, name, reading.x, is_it)
        accuracy["all"].append(scores.of(whole, reading_test.x, is_it_test))
    return accuracy


def targeted_perturbation(
    transcoder: Transcoder,
    reading: Reading,
    reading_test: Reading,
    labels: Labels,
    chosen: dict[str, np.ndarray],
    scores: "Scores",
    fitted: Fitted,
) -> list[Statistic]:
    """By property, the accuracy that its own probe loses without its latents, beyond the mean loss of the other probes."""
    W_dec = transcoder.W_dec.cpu().float().numpy()
    writers = {name: fitted_once(fitted, TARGET, name, reading.y, is_it) for name, (is_it, _) in labels.items()}

    def accuracies(recon: np.ndarray) -> dict[str, Statistic]:
        return {name: scores.of(writers[name], recon, is_it_test) for name, (_, is_it_test) in labels.items()}

    before = accuracies(reading_test.recon)
    targeted = []
    for name in labels:
        after = accuracies(reading_test.recon - reading_test.columns(chosen[name]) @ W_dec[chosen[name]])
        drop = {other: difference(before[other], after[other]) for other in labels}
        own = drop.pop(name)
        targeted.append(difference(own, mean_of(list(drop.values()))) if drop else own)
    return targeted


class Scores:
    """Balanced accuracies (the mean of those within and outside a class) on the same rows, drawn again together."""

    def __init__(self) -> None:
        self.columns: list[np.ndarray] = []

    def of(self, probe: Probe, x: np.ndarray, is_it: np.ndarray) -> Statistic:
        right = probe.says(x) == is_it
        place = 4 * len(self.columns)
        self.columns.append(np.stack([right & is_it, is_it, right & ~is_it, ~is_it], axis=1))

        def share(sums: Tensor, over: int) -> Tensor:
            return sums[..., over] / sums[..., over + 1].clamp_min(1)  # a class may be missing where rows are drawn again

        return lambda sums: (share(sums, place) + share(sums, place + 2)) / 2

    def estimate(self, statistic: Statistic) -> Estimate:
        if not hasattr(self, "table"):
            self.table = torch.from_numpy(np.concatenate(self.columns, axis=1)).double()
            self.resampled = resample(self.table)
        return estimate(statistic, self.table, self.resampled)


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    return lambda sums: torch.stack([statistic(sums) for statistic in statistics]).mean(0)


def few_of(fit: Examples) -> Examples:
    """As many examples as the probes of properties are fitted on."""
    return fit.of(torch.arange(len(fit.text)) < PROPERTY_ROWS)
