"""The figures of a splice: cross-entropy and KL by document -> delta CE, KL and recovered CE, each with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.estimates import Estimate
from evaluate.intervals import MIN_DOCUMENTS, Statistic, difference, estimate, ratio
from evaluate.metrics.measurement import Spliced, SplicedPrefix


class PutIn(IntEnum):
    """What stands in the MLP's place, as columns of the table; the prefixes of every transcoder follow."""

    CLEAN = 0
    """The MLP's own output."""
    ZERO = 1
    MEAN = 2
    """The mean of the MLP's output."""
    FIRST_PREFIX = 3


@dataclass(frozen=True)
class SpliceTable:
    """Cross-entropy and KL of everything that was put in the MLP's place, as sums by document, in nats."""

    prefix_sizes: Sequence[tuple[int, ...]]
    """By transcoder, the prefixes that were spliced."""
    sums: Float[Tensor, "documents columns"]
    """Cross-entropy of each thing put in, then KL of each, then estimated KL of each where the store has a metric, and last
    the number of predictions."""
    resampled: Float[Tensor, "resamples columns"] | None
    """Column sums over documents drawn with replacement; None where there are too few documents."""

    def statistic(self, index: int | None, name: str, prefix: int = -1) -> Statistic:
        """A figure of a transcoder, or of the mean.

        ce_recovered divides by what ablation costs, which is small for one MLP: never quote it alone.

        index: the transcoder; None for the mean of the MLP's output.
        name: `delta_ce`, `kl`, `estimated_kl` or `ce_recovered`.
        prefix: index of one of the transcoder's prefixes; -1 is all latents.
        """
        n_prefixes = [len(sizes) for sizes in self.prefix_sizes]
        n_put_in = PutIn.FIRST_PREFIX + sum(n_prefixes)
        if index is None:
            column = int(PutIn.MEAN)
        else:
            column = PutIn.FIRST_PREFIX + sum(n_prefixes[:index]) + range(n_prefixes[index])[prefix]
        statistics: dict[str, Statistic] = {
            "delta_ce": lambda s: (s[..., column] - s[..., PutIn.CLEAN]) / s[..., -1],
            "kl": ratio(n_put_in + column, -1),
            "estimated_kl": ratio(2 * n_put_in + column, -1),
            "ce_recovered": lambda s: (s[..., PutIn.ZERO] - s[..., column]) / (s[..., PutIn.ZERO] - s[..., PutIn.CLEAN]),
        }
        return statistics[name]

    def estimate(self, statistic: Statistic) -> Estimate:
        """A statistic of the column sums, with its interval."""
        return estimate(statistic, self.sums, self.resampled)

    @property
    def has_estimates(self) -> bool:
        """Whether the store has a metric."""
        n_put_in = PutIn.FIRST_PREFIX + sum(map(len, self.prefix_sizes))
        return self.sums.shape[1] == 3 * n_put_in + 1

    def estimated(self, index: int | None, prefix: int = -1) -> dict[str, Any]:
        """The estimated KL on these predictions, and its correlation with the measured one over documents."""
        if not self.has_estimates:
            return {}
        estimated = self.statistic(index, "estimated_kl", prefix)
        found: dict[str, Any] = {"estimated_kl_spliced": self.estimate(estimated)}
        if len(self.sums) >= MIN_DOCUMENTS:
            both = torch.stack([estimated(self.sums), self.statistic(index, "kl", prefix)(self.sums)])
            found["estimated_kl_correlation"] = float(torch.corrcoef(both)[0, 1])
        return found

    def figures(self, index: int | None) -> Spliced:
        """Every figure of one transcoder, or of the mean where index is None."""
        return Spliced(
            **self.estimated(index),
            delta_ce=self.estimate(self.statistic(index, "delta_ce")),
            kl=self.estimate(self.statistic(index, "kl")),
            ce_recovered=self.estimate(self.statistic(index, "ce_recovered")),
            ce_clean=self.estimate(ratio(PutIn.CLEAN, -1)),
            ce_zero_ablated=self.estimate(ratio(PutIn.ZERO, -1)),
            ce_mean_ablated=self.estimate(ratio(PutIn.MEAN, -1)),
            n_predictions=int(self.sums[:, -1].sum()),
            n_prediction_documents=len(self.sums),
        )

    def by_prefix(self, index: int) -> dict[str, SplicedPrefix]:
        """delta CE and KL of each spliced prefix of a transcoder, by its size."""
        figures = {}
        for number, size in enumerate(self.prefix_sizes[index]):
            figures[str(size)] = SplicedPrefix(
                delta_ce=self.estimate(self.statistic(index, "delta_ce", number)),
                kl=self.estimate(self.statistic(index, "kl", number)),
                **self.estimated(index, number),
            )
        return figures

    def minus(self, index: int, other: int) -> dict[str, Estimate]:
        """Paired differences of delta_ce and kl, this transcoder's less the other's."""
        differences = {}
        for name in ("delta_ce", "kl"):
            statistic = difference(self.statistic(index, name), self.statistic(other, name))
            differences[name] = self.estimate(statistic)
        return differences
