"""What a report says of chance, in sentences: other seeds, the smallest difference that could be seen, and nulls."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from evaluate.labels import Label, shown_in
from evaluate.metrics.chance import (
    AgainstChance,
    against_chance,
    counting_differences,
    detectable,
    reaches_zero,
    rounding,
)
from evaluate.metrics.measurement import Measurement
from evaluate.metrics.readings import readings


def of_chance(measured: Sequence[Measurement], winners: Mapping[str, str]) -> list[str]:
    """Every sentence about chance in a comparison. Where nothing was judged, no smallest difference.

    measured: ours, the one it is judged against, and the others.
    winners: by metric.
    """
    judged = {"ours", "other", "tie"} & set(winners.values())
    smallest = of_smallest_difference(measured) if judged else []
    return [*of_seeds(measured, winners), *smallest, *of_nulls(measured)]


def of_seeds(measured: Sequence[Measurement], winners: Mapping[str, str]) -> list[str]:
    """How far seeds spread, whom that costs a win, and where one seed only was trained."""
    said = []
    for m in measured[:2]:
        fvus = () if m.seeds is None else m.seeds.values.get("fvu", ())
        if len(fvus) > 1:
            spread = f"{fmean(fvus):.4f}, with a standard deviation of {stdev(fvus):.4f}"
            said.append(f"Over {len(fvus)} seeds {m.name} has a mean FVU of {spread}.")
    if measured[0].seeds is None:
        said.append(
            f"One seed of {measured[0].name} was trained: what another seed would change is not known "
            "(make sweep SEEDS=3 trains three)."
        )
    elif measured[1].seeds is None:
        said.append(f"{measured[1].name} is taken as it is: no other seed of it was found.")
    undone = [label.brief for label in shown_in("headline") if undone_by_seeds(measured, winners, label)]
    if undone:
        said.append(f"{_listed(undone)}: different by the documents, but seeds differ as much: within chance.")
    return said


def undone_by_seeds(measured: Sequence[Measurement], winners: Mapping[str, str], label: Label) -> bool:
    """Whether the documents alone would name a winner, and the seeds do not."""
    if winners.get(label.key) != "tie":
        return False
    counting = counting_differences(readings(measured[0], measured[1]), label.key)
    interval = counting[0].ci95 if counting else None
    if interval is None or all(m.seeds is None for m in measured[:2]):
        return False
    return not reaches_zero(interval, rounding(measured[0].value(label.key)))


def of_smallest_difference(measured: Sequence[Measurement]) -> list[str]:
    """The smallest difference in each headline metric that would have been told from zero."""
    found = detectable(measured)
    each = [
        f"{label.brief} {label.form.format(found[label.key].least).removeprefix('+')}"
        for label in shown_in("headline")
        if label.key in found
    ]
    if not each:
        return []
    over = "documents and seeds" if any(one.seeds is not None for one in found.values()) else "documents alone"
    return [f"The smallest difference at equal L0 that could have been told from zero (95%, over {over}): {_listed(each)}."]


def of_nulls(measured: Sequence[Measurement]) -> list[str]:
    """What the nulls reach, and in what the run is no better than they are."""
    nulls = [m for m in measured if m.null]
    if not nulls:
        return []
    fvus = _listed(f"{m.fvu:.4f} ({m.null.replace('_', ' ')})" for m in nulls)
    found = against_chance(measured[0], nulls)
    within = [_within(one) for one in found if not one.beats_it]
    beaten = [one.label.brief for one in found if one.beats_it]
    said = [f"By chance a dictionary of this size reaches an FVU of {fvus}."]
    if beaten:
        said.append(f"{measured[0].name} is better than chance in {_listed(beaten)}.")
    if within:
        said.append(f"No better than chance: {_listed(within)}.")
    return said


def _within(one: AgainstChance) -> str:
    values = [one.label.form.format(value) for value in (one.ours, one.null.value(one.label.key))]
    return f"{one.label.brief} ({values[0]} against {values[1]} for {one.null.null.replace('_', ' ')})"


def _listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
