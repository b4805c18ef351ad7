"""Names a winner by metric, where the data supports one."""

from collections.abc import Sequence

from evaluate.compare.checks import checks
from evaluate.intervals import MIN_DOCUMENTS
from evaluate.labels import judged
from evaluate.metrics.chance import (
    SeedSpread,
    counting_differences,
    detectable,
    reaches_zero,
    rounding,
    spread_over_seeds,
)
from evaluate.metrics.measurement import Comparison, Measurement
from evaluate.metrics.readings import Reading, readings
from store.shards.reader import Store

SIDES = {"ours", "other"}


def name_winners(measured: Sequence[Measurement], store: Store) -> Comparison:
    """The comparison: all measurements, the checks, and a winner by metric where the data supports one.

    Args:
        measured: ours, the one it is judged against, others, nulls, and trivial predictors.
        store: the store on which they were measured.
    """
    ours, other = measured[:2]
    found = checks(measured, store)
    failed = [check.fault for check in found if not check.holds]
    read = readings(ours, other)
    winners = {}
    for name, lower_is_better in judged().items():
        if not other.has(name):
            continue
        if failed:
            winners[name] = f"not judged: {failed[0]}"
        else:
            least = rounding(ours.value(name))
            spread = spread_over_seeds(ours.seeds, other.seeds, name)
            winners[name] = winner_at_equal_l0(read, name, lower_is_better, least, spread)
    return Comparison(
        ours=ours,
        other=other,
        others=tuple(m for m in measured[2:] if not m.trivial and not m.null),
        nulls=tuple(m for m in measured if m.null),
        trivial=tuple(m for m in measured if m.trivial),
        winners=winners,
        detectable=detectable(measured),
        checks=tuple(found),
        rows=ours.n_rows,
        store_fingerprint=store.fingerprint,
    )


def winner_at_equal_l0(
    read: Sequence[Reading], name: str, lower_is_better: bool, least: float = 0.0, spread: SeedSpread | None = None
) -> str:
    """The winner in the first reading that counts, unless the other reading that counts says the contrary.

    A reading at which a dictionary is pushed above its own L0, and is worse for it, does not count. Where there is a spread
    over seeds, the winner has to win by the documents alone, and by documents and seeds together.
    """
    if not read:
        return "not judged: no equal L0 could be reached"
    counting = counting_differences(read, name)
    if not counting:
        return "not judged: at an equal L0 one of them is worse than at its own, lower L0"
    said = [winner(difference.ci95, lower_is_better, least) for difference in counting]
    if set(said) >= SIDES:
        return "not judged: which is better depends on the L0 at which both are read"
    if spread is None or said[0] not in SIDES:
        return said[0]
    over_seeds = winner(spread.widened(counting[0]), lower_is_better, least)
    return said[0] if over_seeds == said[0] else "tie"


def winner(difference: Sequence[float] | None, lower_is_better: bool, least: float = 0.0) -> str:
    """The better side, from the 95% interval of theirs minus ours; a tie unless it excludes zero by more than `least`."""
    if difference is None:
        return f"not judged: fewer than {MIN_DOCUMENTS} documents"
    if reaches_zero(difference, least):
        return "tie"
    return "ours" if (difference[0] > 0) == lower_is_better else "other"
