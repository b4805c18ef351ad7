"""Names a winner by metric, where the data supports one."""

from collections.abc import Sequence

from evaluate.compare.checks import checks, near
from evaluate.intervals import MIN_DOCUMENTS
from evaluate.metrics.results import JUDGED_BY_ROW
from store.shards.reader import Store

JUDGED = JUDGED_BY_ROW | {"delta_ce": True, "kl": True}
"""Metrics in which a winner may be named, and whether lower is better; all of them at equal L0."""

SIDES = {"ours", "google"}

MATCHED = 0.05
"""Two L0s this near, as a share, are equal."""


def name_winners(measured: Sequence[dict], store: Store) -> dict:
    """comparison.json: both metrics, the checks, and a winner by metric where the data supports one."""
    ours, google = measured[0], measured[1]
    found = checks(measured, store)
    failed = [check["claim"] for check in found if not check["holds"]]
    at_equal_l0 = google.get("matched")
    winners = {}
    for name, lower_is_better in JUDGED.items():
        if name not in google:
            continue
        if failed:
            winners[name] = f"not judged: it does not hold that {failed[0]}"
        elif at_equal_l0 is None or not near(at_equal_l0["l0"][0], at_equal_l0["l0"][1], MATCHED):
            winners[name] = "not judged: no equal L0 could be reached"
        else:
            winners[name] = winner(at_equal_l0["minus_ours"][name]["ci95"], lower_is_better)
            read_off = [each["minus_ours"]["ci95"] for each in google.get("at_equal_l0", {}).get(name, [])]
            others_say = {winner(interval, lower_is_better) for interval in read_off}
            if winners[name] in SIDES and (SIDES - {winners[name]}) & others_say:
                winners[name] = "not judged: read off the frontiers at equal L0, it is the other way round"
    trivial = [m for m in measured if m.get("trivial")]
    others = [m for m in measured[2:] if not m.get("trivial")]
    return {
        "ours": ours, "google": google, "others": others, "trivial": trivial, "winners": winners, "checks": found,
        "rows": ours["n_rows"], "store_fingerprint": store.fingerprint,
    }  # fmt: skip


def winner(difference: list[float] | None, lower_is_better: bool) -> str:
    """Who is better, from the 95% interval of theirs minus ours; a tie unless it excludes zero."""
    if difference is None:
        return f"not judged: fewer than {MIN_DOCUMENTS} documents"
    low, high = difference
    if low <= 0 <= high:
        return "tie"
    return "ours" if (low > 0) == lower_is_better else "google"
