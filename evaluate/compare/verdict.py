"""Names a winner by metric, where the data supports one."""

from collections.abc import Sequence

from evaluate.compare.checks import checks, near
from evaluate.intervals import MIN_DOCUMENTS
from evaluate.labels import judged
from evaluate.metrics.measurement import Comparison, Measurement
from store.shards.reader import Store

SIDES = {"ours", "google"}

MATCHED = 0.05
"""Two L0s this near, as a share, are equal."""


def name_winners(measured: Sequence[Measurement], store: Store) -> Comparison:
    """The comparison: all measurements, the checks, and a winner by metric where the data supports one.

    Args:
        measured: ours, the one it is judged against, others, and trivial predictors.
        store: the store on which they were measured.
    """
    ours, google = measured[:2]
    found = checks(measured, store)
    failed = [check.claim for check in found if not check.holds]
    winners = {}
    for name, lower_is_better in judged().items():
        if not google.has(name):
            continue
        if failed:
            winners[name] = f"not judged: it does not hold that {failed[0]}"
        else:
            winners[name] = _winner_at_equal_l0(google, name, lower_is_better)
    return Comparison(
        ours=ours,
        google=google,
        others=tuple(m for m in measured[2:] if not m.trivial),
        trivial=tuple(m for m in measured if m.trivial),
        winners=winners,
        checks=tuple(found),
        rows=ours.n_rows,
        store_fingerprint=store.fingerprint,
    )


def _winner_at_equal_l0(google: Measurement, name: str, lower_is_better: bool) -> str:
    """The winner with ours moved to the other's L0, unless the frontiers at equal L0 say the contrary."""
    matched = google.matched
    if matched is None or not near(*matched.l0, MATCHED):
        return "not judged: no equal L0 could be reached"
    named = winner(matched.minus_ours[name].ci95, lower_is_better)
    read_off = (google.at_equal_l0 or {}).get(name, ())
    others_say = {winner(each.minus_ours.ci95, lower_is_better) for each in read_off}
    if named in SIDES and (SIDES - {named}) & others_say:
        return "not judged: read off the frontiers at equal L0, it is the other way round"
    return named


def winner(difference: Sequence[float] | None, lower_is_better: bool) -> str:
    """The better side, from the 95% interval of theirs minus ours; a tie unless it excludes zero."""
    if difference is None:
        return f"not judged: fewer than {MIN_DOCUMENTS} documents"
    low, high = difference
    if low <= 0 <= high:
        return "tie"
    return "ours" if (low > 0) == lower_is_better else "google"
