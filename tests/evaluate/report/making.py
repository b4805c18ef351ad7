"""Figures as a measurement gives them."""

from evaluate.metrics.results import ROW_METRICS
from store.shards.reader import Store


def measured(name: str, fvu: float, store: Store, prefixes: int = 3) -> dict:
    """A measurement as JSON."""
    sizes = [10, 20, 40][-prefixes:]
    by_row = dict.fromkeys(ROW_METRICS, fvu)
    of_prefix = {
        "dead_features": 1,
        "dead_fraction": 0.025,
        "density_median": 0.1,
        "redundancy": 0.0,
        "mean_max_cosine": 0.4,
    }
    return {
        "fvu": fvu,
        "fvu_per_prefix": {str(size): fvu * (1 + 1 / size) for size in sizes},
        "fvu_without_outliers": fvu,
        "mse": 1.5,
        "mse_without_outliers": 1.5,
        "cosine_similarity": 0.9,
        "cosine_similarity_without_outliers": 0.9,
        "l0_mean": 4.1,
        "l0_per_prefix": {str(s): 4.1 * s / 40 for s in sizes},
        "per_prefix": {str(s): by_row | of_prefix | {"l0_mean": 4.1 * s / 40, "ci95": {"fvu": [fvu, fvu]}} for s in sizes},
        "l0_median": 4.0,
        "l0_percentiles": {"50": 4.0},
        "dead_features": 1,
        "dead_fraction": 0.025,
        "density_histogram": {"log10_edges": [-3, -2, -1, 0], "features": [1, 30, 8]},
        "redundancy": 0.001,
        "mean_max_cosine": 0.4,
        "fvu_scalar_variance": fvu / 2,
        "d_sae": 40,
        "k": 4,
        "n_rows": store.manifest.n_rows("heldout"),
        "rows_digest": "d" * 32,
        "n_outliers": 1,
        "fvu_by_position": {"1-3": {"rows": 3, "fvu": fvu, "l0": 4.0}, "4+": {"rows": 9, "fvu": fvu, "l0": 4.0}},
        "fvu_by_token_rank": {"1-10": {"rows": 12, "fvu": fvu, "l0": 4.0}},
        "explained_variance_by_dimension": [0.1, -0.2, 0.9],
        "store_fingerprint": store.fingerprint,
        "name": name,
        "source": "somewhere",
        "architecture": "test",
        "view": "rms",
        "trained_on": None,
        "warnings": [],
        "best_scale": 0.98,
        "split": "heldout",
        "n_documents": 40,
        "worst_rows": [
            {
                "before": [5, 6],
                "token": 7,
                "after": [8],
                "share": 0.25,
                "fvu": 1.5,
                "outlier": True,
                "shard": "s",
                "sequence": 0,
                "position": 2,
                "document": 3,
            }
        ],
        "max_cosine_histogram": {"edges": [0, 0.5, 1], "features": [30, 10]},
        "ci95": {name: [0.9 * fvu, 1.1 * fvu] for name in ROW_METRICS},
        "matched": {
            "l0": [4.1, 4.1],
            "fvu": [0.2, 0.25],
            "minus_ours": {
                name: {"value": 0.05, "ci95": [-0.1, 0.1] if name == "mse" else [0.04, 0.06]} for name in ROW_METRICS
            },
        },
    }
