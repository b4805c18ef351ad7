"""Every metric as people read it: its label, its format, whether less is better, and where it is shown.

README.md says where a metric is added.
"""

import math
from dataclasses import dataclass
from typing import Literal

Place = Literal["report", "appendix", "headline", "layers", "runs", "run"]
"""A table of the report; its appendix; its verdict; the report over layers; the browser's list of runs; a run's page."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is said of one metric."""

    key: str
    """In metrics.json."""
    label: str
    form: str
    """A format for str.format."""
    most: float = math.inf
    """A figure above it means nothing and is not shown."""
    note: str = ""
    short: str = ""
    """Where there is little room; `label` when it is not given."""
    better: Literal["lower", "higher"] | None = None
    """None where neither direction is."""
    judged: bool = False
    """Whether a comparison may name a winner in it."""
    shown: tuple[Place, ...] = ("report",)

    @property
    def brief(self) -> str:
        return self.short or self.label

    @property
    def explained(self) -> str:
        """The note, with the better direction."""
        return "; ".join(part for part in (self.note, f"{self.better} is better" if self.better else "") if part)


LABELS = (
    Label(
        key="kl",
        label="KL, nats",
        form="{:.4f}",
        note="of the model's predictions from what they were",
        short="KL",
        better="lower",
        judged=True,
        shown=("report", "headline"),
    ),
    Label(
        key="delta_ce",
        label="delta CE, nats",
        form="{:+.4f}",
        note="what its output in the MLP's place costs the model",
        short="delta CE",
        better="lower",
        judged=True,
        shown=("report", "headline", "layers"),
    ),
    Label(
        key="estimated_kl",
        label="estimated KL, nats",
        form="{:.4f}",
        note="e^T G e / 2 of a row's error e, by the store's metric G: what it costs the model, to second order",
        short="estimated KL",
        better="lower",
        judged=True,
        shown=("report", "headline", "layers", "runs", "run"),
    ),
    Label(key="estimated_kl_spliced", label="the same on the predictions of KL", form="{:.4f}", note="to hold against KL"),
    Label(key="estimated_kl_correlation", label="its correlation with KL", form="{:.3f}", note="over documents"),
    Label(
        key="fvu",
        label="FVU",
        form="{:.4f}",
        note="fraction of variance unexplained",
        better="lower",
        judged=True,
        shown=("report", "headline", "layers", "runs", "run"),
    ),
    Label(
        key="fvu_without_outliers",
        label="FVU without outlier rows",
        form="{:.4f}",
        note="rows above 5 times the median norm left out",
        better="lower",
        judged=True,
    ),
    Label(key="mse", label="MSE", form="{:.4g}", note="per entry, in raw units", better="lower", judged=True),
    Label(
        key="cosine_similarity",
        label="cosine similarity",
        form="{:.4f}",
        note="mean over rows",
        short="cosine",
        better="higher",
        judged=True,
        shown=("report", "run"),
    ),
    Label(
        key="ce_recovered",
        label="CE recovered",
        form="{:.1%}",
        note="share of what zero ablation costs; unstable, never to be read alone",
    ),
    Label(key="ce_clean", label="CE of the model, nats", form="{:.4f}", note="as it is, on the same predictions"),
    Label(key="ce_mean_ablated", label="CE, MLP's mean put in", form="{:.4f}"),
    Label(key="ce_zero_ablated", label="CE, MLP left out", form="{:.4f}"),
    Label(
        key="absorption",
        label="first-letter absorption",
        form="{:.3f}",
        note="words whose letter another latent took over",
        better="lower",
        shown=("report", "layers"),
    ),
    Label(
        key="absorption_chanin",
        label="absorption, Chanin et al.",
        form="{:.3f}",
        note="the same by the stricter rule of arXiv 2409.14507",
        better="lower",
    ),
    Label(key="splitting", label="splitting", form="{:.2f}", note="latents that share one letter; 1 is best"),
    Label(
        key="sparse_probing",
        label="sparse probing, 1 latent",
        form="{:.3f}",
        note="balanced accuracy, mean over up to six properties of tokens",
        better="higher",
    ),
    Label(key="sparse_probing_2", label="sparse probing, 2 latents", form="{:.3f}", better="higher"),
    Label(key="sparse_probing_5", label="sparse probing, 5 latents", form="{:.3f}", better="higher"),
    Label(key="sparse_probing_all", label="the same probes on the whole input", form="{:.3f}"),
    Label(
        key="tpp",
        label="targeted perturbation",
        form="{:.3f}",
        note="own accuracy lost beyond that of other properties",
        better="higher",
        shown=("appendix",),
    ),
    Label(
        key="l0_mean",
        label="L0, mean",
        form="{:.1f}",
        note="active latents per row",
        short="mean L0",
        shown=("report", "layers", "runs", "run"),
    ),
    Label(key="l0_median", label="L0, median", form="{:.0f}"),
    Label(key="d_sae", label="width", form="{:,}", note="latents in the dictionary", shown=("report", "runs", "run")),
    Label(
        key="k",
        label="L0 intended",
        form="{}",
        note="k, or the label of the release",
        short="k",
        shown=("report", "runs", "run"),
    ),
    Label(key="dead_features", label="dead features", form="{:,}", note="never fired on these rows"),
    Label(key="dead_fraction", label="dead share", form="{:.2%}", short="dead", shown=("report", "layers", "runs", "run")),
    Label(
        key="density_median",
        label="median density of living features",
        form="{:.2g}",
        note="share of rows on which they fire",
        shown=("layers",),
    ),
    Label(
        key="redundancy",
        label="redundancy",
        form="{:.2g}",
        note="share of decoder pairs with |cosine| > 0.9 (older reports: absorption score)",
        better="lower",
        shown=("report", "layers", "runs", "run"),
    ),
    Label(
        key="mean_max_cosine",
        label="mean largest cosine",
        form="{:.3f}",
        note="of each decoder row with another",
        shown=("report", "layers", "run"),
    ),
    Label(
        key="jacobian_latents",
        label="Jacobian agreement, latents",
        form="{:.3f}",
        note="1 - |J_t v - J_m v|^2 / |J_m v|^2, v a push of the row along an active latent's encoder: 1 where it answers "
        "as the MLP does",
        better="higher",
    ),
    Label(key="jacobian_latents_cosine", label="the same as a cosine", form="{:.3f}", better="higher"),
    Label(key="jacobian_random", label="the same along random directions", form="{:.3f}", better="higher"),
    Label(key="jacobian_random_cosine", label="the same as a cosine", form="{:.3f}", better="higher"),
    Label(
        key="useful_share",
        label="useful firings",
        form="{:.1%}",
        note="without which their row's squared error would be larger",
        better="higher",
    ),
    Label(
        key="recurring_share",
        label="latents that recur in other seeds",
        form="{:.2%}",
        note="encoder and decoder cosine above 0.7 with one latent",
        better="higher",
    ),
    Label(
        key="pw_mcc",
        label="PW-MCC over seeds",
        form="{:.3f}",
        note="mean |cosine| of decoder rows, matched one to one (arXiv 2505.20254), to 0.0001 of the best",
        better="higher",
    ),
    Label(
        key="coactivation",
        label="co-activation",
        form="{:.3f}",
        note="mean largest cosine of two latents' firing patterns",
        better="lower",
    ),
    Label(
        key="monosemanticity",
        label="monosemanticity",
        form="{:.3f}",
        note="cosine of mlp_out where a latent fires (arXiv 2504.02821), 1 at most; a proxy: see the next row",
        better="higher",
    ),
    Label(
        key="monosemanticity_random",
        label="the same of random directions",
        form="{:.3f}",
        note="directions of the input that fire as often: what a dictionary has that learnt nothing",
    ),
    Label(
        key="token_purity",
        label="token purity",
        form="{:.3f}",
        note="share of a latent's firings on its commonest token, 1 at most; a proxy: see the next row",
        better="higher",
    ),
    Label(
        key="token_purity_random",
        label="the same of random directions",
        form="{:.3f}",
        note="directions of the input that fire as often: what a dictionary has that learnt nothing",
    ),
    Label(
        key="best_scale",
        label="best scale",
        form="{:.3f}",
        note="factor by which the output would fit best; sound ones are near 1",
    ),
    Label(key="n_rows", label="held-out rows", form="{:,}", shown=("run",)),
    Label(
        key="fvu_scalar_variance",
        label="legacy scalar-variance FVU",
        form="{:.4f}",
        note="always lower; not comparable with FVU",
    ),
    Label(
        key="explained_variance_saelens_legacy",
        label="legacy SAELens explained variance",
        form="{:.4f}",
        note="mean over rows of each row's own; not 1 minus FVU",
    ),
    Label(
        key="explained_variance_saebench",
        label="legacy SAEBench explained variance",
        form="{:.4f}",
        note="as SAEBench 0.6 has it; it changes with the units, and is left out where it exceeds 1",
        most=1.0,
    ),
)
"""In the order in which tables show them."""

BY_COST = ("kl", "delta_ce", "estimated_kl", "fvu")
"""What a dictionary costs the language model, and what it leaves unexplained."""
AGAINST_CHANCE = (*BY_COST, "sparse_probing", "sparse_probing_5", "monosemanticity", "token_purity")
"""Metrics in which a run is held against its nulls: a dictionary that cannot learn must be worse."""


def shown_in(place: Place) -> list[Label]:
    """The metrics of a table, in order."""
    return [label for label in LABELS if place in label.shown]


def judged() -> dict[str, bool]:
    """Metrics in which a winner may be named, at equal L0, and whether lower is better."""
    return {label.key: label.better == "lower" for label in LABELS if label.judged}
