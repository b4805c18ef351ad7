"""The result of a comparison in sentences."""

from collections.abc import Mapping, Sequence

from evaluate.labels import shown_in
from evaluate.metrics.chance import reaches_zero, rounding
from evaluate.metrics.measurement import Measurement
from evaluate.metrics.readings import Reading, readings
from evaluate.report.chance import of_chance
from evaluate.text import explained

FEW_DOCUMENTS = 50
"""With fewer held-out documents their number is said beside the verdict."""


def verdict(measured: Sequence[Measurement], winners: Mapping[str, str]) -> str:
    """The result in a few sentences, as one paragraph."""
    return " ".join(sentences(measured, winners))


def sentences(measured: Sequence[Measurement], winners: Mapping[str, str]) -> list[str]:
    """The result: each at its own L0, both at an equal one, and what puts them in place."""
    ours = measured[0]
    first = f"{ours.name} leaves {ours.fvu:.1%} of the variance unexplained at a mean L0 of {ours.l0_mean:.1f}"
    few = [f"Only {ours.n_documents} held-out documents were measured, so intervals are wide."] * (
        ours.n_documents < FEW_DOCUMENTS
    )
    if len(measured) == 1:
        return [*costs(measured), f"{first}, with {ours.dead_fraction:.2%} dead features.", *few]
    other = measured[1]
    own = f"{first}; {other.name} leaves {other.fvu:.1%} at {other.l0_mean:.1f}{_between_own(ours, other)}."
    chance = of_chance(measured, winners)
    return [*costs(measured[:2]), own, *judgement(measured, winners), *chance, *beaten_by(measured), *few]


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


def _between_own(ours: Measurement, other: Measurement) -> str:
    """The difference between both at their own L0."""
    difference = (other.minus_first or {}).get("fvu")
    if difference is None:
        return ""
    if reaches_zero(difference.ci95 or (difference.value, difference.value), rounding(ours.fvu)):
        return " (no difference that can be told, each at its own L0)"
    by = f"{abs(difference.value):.4f}"
    if difference.ci95 is not None:
        low, high = sorted(map(abs, difference.ci95))
        by += f" [{low:.4f}, {high:.4f}]"
    return f" (an FVU {_less_or_more(difference.value, by)}, each at its own L0)"


def _less_or_more(difference: float, by: str) -> str:
    return f"{'lower' if difference < 0 else 'higher'} by {by}"


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


def judgement(measured: Sequence[Measurement], winners: Mapping[str, str]) -> list[str]:
    """Both readings at an equal L0, and who is better in what."""
    names = {"ours": measured[0].name, "other": measured[1].name}
    found: dict[str, list[str]] = {}
    for label in shown_in("headline"):
        if label.key in winners:
            found.setdefault(winners[label.key], []).append(label.brief)
    read = [_reading(one, measured) for one in readings(measured[0], measured[1])]
    if not {"tie", *names} & found.keys():
        reason = winners["fvu"].removeprefix("not judged: ")
        return [*read, f"No winner is named: {reason}."]
    said = []
    for outcome, labels in found.items():
        in_what = " and ".join(labels)
        if outcome == "tie":
            said.append(f"{in_what}: a tie, within chance")
        elif outcome in names:
            said.append(f"{in_what}: {names[outcome]} is better")
        else:
            said.append(f"{in_what}: {outcome}")
    return [*read, f"At equal L0, by 95% intervals of the differences, paired by document: {'; '.join(said)}."]


def _reading(one: Reading, measured: Sequence[Measurement]) -> str:
    """Both at one L0, in a sentence about the one whose threshold was moved."""
    index = 0 if one.moved == "ours" else 1
    moved, kept = measured[index].name, measured[1 - index].name
    l0s, fvus = ((pair[index], pair[1 - index]) for pair in (one.l0, one.fvu))
    said = f"Moved to the L0 of {kept} ({l0s[0]:.1f} against {l0s[1]:.1f}), {moved} has an FVU of {fvus[0]:.4f}"
    if one.is_past_its_best:
        return f"{said}, which does not count: it is worse there than at its own L0 ({one.own[1]:.4f} at {one.own[0]:.1f})."
    said += f" against {fvus[1]:.4f}"
    ends = one.minus_ours["fvu"].ci95
    if ends is None:
        return f"{said}."
    if reaches_zero(ends, rounding(measured[0].fvu)):
        return f"{said}: no difference that can be told."
    low, high = sorted(map(abs, ends))
    return f"{said}: {_less_or_more(fvus[0] - fvus[1], f'{low:.4f} to {high:.4f}')}."
