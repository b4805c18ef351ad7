"""What one more active latent would save of the language model's loss, measured on a batch at the weights as they are."""

import torch
from jaxtyping import Float
from torch import Tensor

from store.shards.metric import SiteMetric
from train.step.module import TrainingTranscoder

SPREAD = 0.1
"""The saving is measured between k less and k more by this share."""
ROWS = 1024
"""Rows of the batch that are measured, at most."""


def cost_matrix(module: TrainingTranscoder, metric: SiteMetric) -> Float[Tensor, "d d"]:
    """C, with which an error e in the module's units costs about e^T C e nats: half the metric, folded back."""
    cost = metric.fisher / (2 * float(module.target_scale) ** 2)
    if module.target_inverse is not None:
        inverse = module.target_inverse.cpu().double()
        cost = inverse @ cost @ inverse
    return cost.float().to(module.decoder.device)


@torch.no_grad()
def saving_of(module: TrainingTranscoder, cost: Tensor, source: Tensor, target: Tensor, step: int) -> float:
    """Estimated KL in nats a row that one more active latent a row saves, around the k of a step, counted from 0."""
    x, y = module.normalise(source[:ROWS], target[:ROWS])
    k = module.activation.k_at(step)
    pre = torch.addmm(module.b_enc, x, module.encoder.T).relu_()
    goal = y - module.b_dec
    if module.skip is not None:
        goal -= x @ module.skip.T
    costs = []
    for share in (1 - SPREAD, 1 + SPREAD):
        wanted = min(pre.numel(), max(1, round(share * k * len(x))))
        threshold = pre.flatten().topk(wanted).values[-1]
        error = (pre * (pre >= threshold)) @ module.decoder - goal
        costs.append(torch.linalg.vecdot(error @ cost, error).double().sum() / len(x))
    return float(costs[0] - costs[1]) / (2 * SPREAD * k)
