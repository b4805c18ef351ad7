"""The result of a comparison in sentences."""

from collections.abc import Mapping, Sequence

from evaluate.labels import shown_in
from evaluate.metrics.measurement import Measurement
from evaluate.metrics.readings import Reading, readings
from evaluate.report.chance import of_chance
from evaluate.text import explained

FEW_DOCUMENTS = 50
"""With fewer held-out documents their number is said beside the verdict."""


def verdict(measured: Sequence[Measurement], winners: Mapping[str, str]) -> str:
    """The result in a few sentences: each at its own L0, both at an equal one, and what puts them in place."""
    ours = measured[0]
    first = f"{ours.name} leaves {ours.fvu:.1%} of the variance unexplained at a mean L0 of {ours.l0_mean:.1f}"
    few = [f"Only {ours.n_documents} held-out documents were measured, so intervals are wide."] * (
        ours.n_documents < FEW_DOCUMENTS
    )
    if len(measured) == 1:
        return " ".join([*costs(measured), f"{first}, with {ours.dead_fraction:.2%} dead features.", *few])
    other = measured[1]
    own = f"{first}; {other.name} leaves {other.fvu:.1%} at {other.l0_mean:.1f}{_between_own(other)}."
    chance = of_chance(measured, winners)
    return " ".join([*costs(measured[:2]), own, judgement(measured, winners), *chance, *beaten_by(measured), *few])


def in_words(m: Measurement, cost_of_mean: float | None) -> str:
    """What the figures of one transcoder by itself mean, in a line.

    cost_of_mean: the estimated KL of predicting the mean, in nats; None where the store has no metric.
    """
    said = explained(m.fvu, "the held-out rows")
    if cost_of_mean is not None and m.has("estimated_kl"):
        share = m.estimated_kl / cost_of_mean
        said += f"; costs the model an estimated KL of {m.estimated_kl:.4f} nats, {share:.1%} of what the mean costs there"
    return f"in words: {said}; {m.dead_fraction:.2%} of the latents never fire there, below 10% is good"


def costs(measured: Sequence[Measurement]) -> list[str]:
    """A sentence that says what each costs the language model, at its own L0; none where that was not measured."""
    said = [f"{m.name} costs the language model {cost}" for m in measured if (cost := _cost(m))]
    return [f"In the place of the MLP, {'; '.join(said)}."] if len(said) == len(measured) else []


def _cost(m: Measurement) -> str:
    """KL and delta CE where they were measured, else the estimated KL, else nothing."""
    if m.kl is not None and m.delta_ce is not None:
        return f"a KL of {m.kl.value:.4f} nats and a delta CE of {m.delta_ce.value:+.4f} nats"
    return f"an estimated KL of {m.estimated_kl:.4f} nats" if m.has("estimated_kl") else ""


def _between_own(other: Measurement) -> str:
    """The difference between both at their own L0."""
    apart = (other.minus_first or {}).get("fvu")
    if apart is None:
        return ""
    ends = "" if apart.ci95 is None else f" [{min(map(abs, apart.ci95)):.4f}, {max(map(abs, apart.ci95)):.4f}]"
    if apart.ci95 is not None and apart.ci95[0] < 0 < apart.ci95[1]:
        ends = " (the interval includes zero)"
    return f" (each at its own L0: FVU {abs(apart.value):.4f} apart{ends})"


def beaten_by(measured: Sequence[Measurement]) -> list[str]:
    """A sentence for each metric in which a trivial predictor is better than both transcoders."""
    said = []
    for label in shown_in("headline"):
        figures = [m.value(label.key) for m in measured[:2]]
        trivial = [(value, m.name) for m in measured if m.trivial and (value := m.value(label.key)) is not None]
        if label.better != "lower" or not trivial or None in figures:
            continue
        value, name = min(trivial)
        if value < min(figure for figure in figures if figure is not None):
            said.append(f"A trivial predictor beats both in {label.brief}: {name}, {label.form.format(value)}.")
    return said


def judgement(measured: Sequence[Measurement], winners: Mapping[str, str]) -> str:
    """Both readings at an equal L0, and who is better in what."""
    names = {"ours": measured[0].name, "other": measured[1].name}
    found: dict[str, list[str]] = {}
    for label in shown_in("headline"):
        if label.key in winners:
            found.setdefault(winners[label.key], []).append(label.brief)
    read = readings(measured[0], measured[1])
    if not {"tie", *names} & found.keys():
        reason = winners["fvu"].removeprefix("not judged: ")
        return " ".join([*(_reading(one, measured) for one in read), f"No winner is named: {reason}."])
    said = []
    for outcome, labels in found.items():
        in_what = " and ".join(labels)
        if outcome == "tie":
            said.append(f"{in_what}: a tie, within chance")
        elif outcome in names:
            said.append(f"{in_what}: {names[outcome]} is better")
        else:
            said.append(f"{in_what}: {outcome}")
    judged = f"At equal L0, by 95% intervals of the differences, paired by document: {'; '.join(said)}."
    return " ".join([*(_reading(one, measured) for one in read), judged])


def _reading(one: Reading, measured: Sequence[Measurement]) -> str:
    """Both at one L0, in a sentence."""
    index = 0 if one.moved == "ours" else 1
    moved = measured[index].name
    kept = measured[1 - index].name
    said = f"At the L0 of {kept} ({one.l0[0]:.1f} against {one.l0[1]:.1f}): FVU {one.fvu[0]:.4f} against {one.fvu[1]:.4f}"
    if one.is_past_its_best:
        own = f"{one.own[1]:.4f} at {one.own[0]:.1f}"
        return f"{said}, which does not count: {moved} is worse there than at its own L0 ({own})."
    ends = one.minus_ours["fvu"].ci95
    if ends is None or ends[0] <= 0 <= ends[1]:
        return f"{said}."
    low, high = sorted(map(abs, ends))
    return f"{said}, {low:.4f} to {high:.4f} apart."
