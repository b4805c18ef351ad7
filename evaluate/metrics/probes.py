"""Probes on what a transcoder reads and writes, and what they say of first letters: absorption and splitting.

Latents are read at the transcoder's own input. Its decoder writes to another site, so a probe there (mlp_out, mostly) says
how much of a concept each latent writes, while a probe on the input says whether the concept can be read at all.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from threadpoolctl import threadpool_limits
from torch import Tensor

from evaluate.estimates import Estimate
from evaluate.intervals import estimate, ratio, resample
from evaluate.metrics.measurement import FirstLetters, Letter
from evaluate.metrics.tasks import LETTERS, Examples, Prompted
from store.errors import Refused
from store.transcoders.forward import Forward
from store.transcoders.transcoder import Transcoder
from store.views import Norm

MIN_WORDS = 10
"""A letter (or property) with fewer examples, to fit or to test, is left out."""

PROBE_F1 = 0.6

SPLIT_GAIN = 0.03

MOST_MAIN = 5

COSINE = 0.025

SHARE = 0.4

MARGIN = 1.0


class Probe:
    """A logistic probe in units of its input, classes weighted equally."""

    def __init__(self, x: np.ndarray, is_it: np.ndarray) -> None:
        self.mean = x.mean(0)
        self.scale = x.std(0) + 1e-6
        model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=200)
        with warnings.catch_warnings(), threadpool_limits(1):  # many small products: threads would wait for each other
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit((x - self.mean) / self.scale, is_it)
        self.direction = np.asarray(model.coef_)[0] / self.scale
        self.bias = float(np.asarray(model.intercept_)[0] - self.mean @ self.direction)

    def says(self, x: np.ndarray) -> np.ndarray:
        return x @ self.direction + self.bias > 0

    def f1(self, x: np.ndarray, is_it: np.ndarray) -> float:
        return float(f1_score(is_it, self.says(x)))


Fitted = dict[tuple[str, str], Probe]
"""Probes of whole sites, by (view or TARGET, label): shared by all transcoders of the same sites."""

TARGET = "target"


def fitted_once(fitted: Fitted, site: str, label: str, x: np.ndarray, is_it: np.ndarray) -> Probe:
    if (site, label) not in fitted:
        fitted[site, label] = Probe(x, is_it)
    return fitted[site, label]


class Reading:
    """Examples as one transcoder reads them: its input, its latents, and what it writes."""

    def __init__(self, forward: Forward, norm: Norm, found: Examples) -> None:
        t = forward.transcoder
        with torch.no_grad():
            x = t.view(found.source.to(t.W_dec.device), norm.to(t.W_dec.device))
            entries = forward.entries(x)
            self.recon = forward.prefixes(entries, x).recon[-1].cpu().numpy()
        self.x = x.cpu().numpy()
        self.y = found.target.numpy()
        places = (entries.row.cpu().numpy(), entries.latent.cpu().numpy())
        self.latents = csr_array((entries.value.cpu().numpy(), places), shape=(len(x), t.config.d_sae))

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        return self.latents[:, chosen].toarray()


def most_different(reading: Reading, is_it: np.ndarray, n: int) -> np.ndarray:
    """The n latents whose mean activation differs most between the classes, in favour of the class (SAEBench)."""
    weight = np.where(is_it, 1 / is_it.sum(), -1 / (~is_it).sum())
    return np.argsort(-(weight @ reading.latents))[:n]


def main_latents(fit: Reading, test: Reading, is_it: np.ndarray, is_it_test: np.ndarray) -> np.ndarray:
    """The latents of the smallest k-sparse probe that one latent more improves by at most 0.03 of F1 (arXiv 2409.14507)."""
    best = most_different(fit, is_it, MOST_MAIN + 1)
    last = _sparse_f1(fit, test, is_it, is_it_test, best[:1])
    for k in range(1, MOST_MAIN + 1):
        more = _sparse_f1(fit, test, is_it, is_it_test, best[: k + 1])
        if more <= last + SPLIT_GAIN:
            return best[:k]
        last = more
    return best[:MOST_MAIN]


def _sparse_f1(fit: Reading, test: Reading, is_it: np.ndarray, is_it_test: np.ndarray, chosen: np.ndarray) -> float:
    return Probe(fit.columns(chosen), is_it).f1(test.columns(chosen), is_it_test)


def absorbed(writes: Float[Tensor, "words d_sae"], cosine: Float[Tensor, " d_sae"], main: np.ndarray) -> np.ndarray:
    """Words that another latent absorbs although the main latents are silent, by SAEBench's rule.

    `writes` is what each active latent adds to the probe's logit: one with a decoder-probe cosine of at least 0.025 carries
    at least 0.4 of all that is added.
    """
    silent = (writes[:, torch.from_numpy(main)] == 0).all(1)
    top = writes.max(1)
    aligned = cosine[top.indices] >= COSINE
    total = writes.sum(1)
    return (silent & aligned & (total > 0) & (top.values >= SHARE * total)).numpy()


def absorbed_by_ablation(
    effect: Float[Tensor, "words d_sae"], cosine: Float[Tensor, " d_sae"], main: np.ndarray
) -> np.ndarray:
    """The same by the rule of Chanin et al. (arXiv 2409.14507): `effect` is what the model's logit of the right letter
    loses when a latent is ablated; the largest one's latent has that cosine, and is at least 1 above the next."""
    silent = (effect[:, torch.from_numpy(main)] == 0).all(1)
    top = effect.topk(2, dim=1)
    aligned = cosine[top.indices[:, 0]] >= COSINE
    return (silent & aligned & (top.values[:, 0] >= top.values[:, 1] + MARGIN)).numpy()


def first_letters(
    forward: Forward, norm: Norm, fit: Examples, test: Examples, fitted: Fitted, prompted: Prompted | None = None
) -> FirstLetters:
    """Absorption and splitting, with words in prompts also absorption by ablation, over letters whose probe has an F1 above
    PROBE_F1 on other words. Refused when there is no such letter.

    Absorption is the share of words that the probe gets right. Words stand in running text, not in a spelling prompt as
    in SAEBench, so its published figures are not comparable. Intervals: words (letters, for splitting) drawn again.
    """
    fit, test = fit.of(fit.letters() >= 0), test.of(test.letters() >= 0)
    words = [torch.bincount(found.letters(), minlength=len(LETTERS)) for found in (fit, test)]
    enough = (torch.minimum(*words) >= MIN_WORDS).nonzero().flatten().tolist()
    if not enough:
        raise Refused(
            f"no letter begins {MIN_WORDS} words to fit a probe on and {MIN_WORDS} to test it; harvest more tokens, or "
            "leave the probes out with --no-probes"
        )
    reading = Reading(forward, norm, fit)
    reading_test = Reading(forward, norm, test)
    cases = {}
    for number in enough:
        is_it = fit.letters().numpy() == number
        is_it_test = test.letters().numpy() == number
        found = one_letter(forward.transcoder, LETTERS[number], reading, reading_test, is_it, is_it_test, fitted)
        if found is not None:
            cases[number] = found
    if not cases:
        raise Refused(
            f"no first letter can be read from these rows (F1 above {PROBE_F1} on at least {MIN_WORDS} words); "
            "harvest more tokens, or leave the probes out with --no-probes"
        )
    letters = torch.tensor([[1.0, len(case.main)] for case in cases.values()], dtype=torch.float64)
    figures = FirstLetters(
        absorption=share_of([case.absorbed for case in cases.values()]),
        splitting=estimate(ratio(1, 0), letters, resample(letters)),
        letters={LETTERS[number]: case.described for number, case in cases.items()},
    )
    if prompted is None:
        return figures
    in_prompt = Reading(forward, norm, prompted.words)
    W_dec = forward.transcoder.W_dec.cpu().float()
    ablated = [ablated_in_prompts(case, number, in_prompt, prompted, W_dec) for number, case in cases.items()]
    if not sum(map(len, ablated)):
        return figures
    return figures.plus(absorption_chanin=share_of(ablated), letters_spelled=float(prompted.spelled.mean()))


@dataclass(frozen=True, kw_only=True)
class LetterCase:
    """What was found of one letter whose probe is good enough."""

    probe: Probe
    f1: float
    absorbed: np.ndarray
    """bool, by test word that the probe gets right: whether another latent absorbs it."""
    main: np.ndarray
    """The latents that stand for the letter."""
    cosine: Float[Tensor, " d_sae"]
    """Of each decoder row with the direction of the letter on the target."""

    @property
    def described(self) -> Letter:
        return Letter(
            probe_f1=self.f1,
            words=len(self.absorbed),
            absorbed=int(self.absorbed.sum()),
            main=tuple(self.main.tolist()),
        )


def one_letter(
    transcoder: Transcoder,
    letter: str,
    reading: Reading,
    reading_test: Reading,
    is_it: np.ndarray,
    is_it_test: np.ndarray,
    fitted: Fitted,
) -> LetterCase | None:
    """Which test words of a letter are absorbed, and its main latents; None where the F1 of its probe is too low.

    reading, reading_test: words to fit probes on, and words to test.
    is_it, is_it_test: whether each of these words begins with the letter.
    fitted: probes of whole sites; those of this letter are added.
    """
    probe = fitted_once(fitted, transcoder.config.view, letter, reading.x, is_it)
    f1 = probe.f1(reading_test.x, is_it_test)
    if f1 <= PROBE_F1:
        return None
    right = np.flatnonzero(is_it_test & probe.says(reading_test.x))
    main = main_latents(reading, reading_test, is_it, is_it_test)
    direction = torch.from_numpy(fitted_once(fitted, TARGET, letter, reading.y, is_it).direction).float()
    W_dec = transcoder.W_dec.cpu().float()
    writes = torch.from_numpy(reading_test.latents[right].toarray()) * (W_dec @ direction)
    cosine = torch.nn.functional.cosine_similarity(W_dec, direction[None], dim=1)
    return LetterCase(probe=probe, f1=f1, absorbed=absorbed(writes, cosine, main), main=main, cosine=cosine)


def ablated_in_prompts(
    case: LetterCase, number: int, in_prompt: Reading, prompted: Prompted, W_dec: Float[Tensor, "d_sae d_out"]
) -> np.ndarray:
    """By prompted word of the letter that the probe gets right: whether it is absorbed by the rule of ablation."""
    asked = np.flatnonzero((prompted.words.letters().numpy() == number) & case.probe.says(in_prompt.x))
    latents = torch.from_numpy(in_prompt.latents[asked].toarray())
    return absorbed_by_ablation(latents * (prompted.gradient[asked] @ W_dec.T), case.cosine, case.main)


def share_of(cases: Sequence[np.ndarray]) -> Estimate:
    """The share that holds, of cases that are drawn again one by one."""
    holds = torch.from_numpy(np.concatenate(cases)).double()
    table = torch.stack([torch.ones_like(holds), holds], dim=1)
    return estimate(ratio(1, 0), table, resample(table))
