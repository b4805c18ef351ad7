"""What a run reads before its first step: what targets are seen through, and the functional start of the decoder, which is
what the MLP answers when its input is pushed along each latent's encoder row."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from store.loader.batches import batches
from store.mlp.derivatives import Function
from store.mlp.forward import Mlp
from store.names import ViewName
from store.shards.metric import read_metric
from store.shards.reader import Store
from train.config import TrainConfig
from train.step.module import TrainingTranscoder
from train.step.target import TargetRoot

START_ROWS = 64
"""Training rows over which the MLP's derivative is averaged."""
COVARIANCE_ROWS = 16_384
"""Training rows from which the covariance of the targets is known, where the store has no metric."""
COVARIANCE_BATCH = 1024
TargetView = Literal["raw", "whitened", "fisher"]


def target_root(config: TrainConfig, store: Store, view: TargetView) -> TargetRoot | None:
    """What the loss sees errors through; None for the plain target."""
    if view == "raw":
        return None
    if view == "whitened":
        return TargetRoot.whitened(covariance_of_targets(store, config))
    metric = read_metric(store.target_side, config.target_site)
    assert metric is not None
    return TargetRoot.of(metric, config.whitening)


def covariance_of_targets(store: Store, config: TrainConfig) -> Float[Tensor, "d d"]:
    """Of the first COVARIANCE_ROWS training rows, which stay the first when the store is extended. Float64."""
    rows = min(COVARIANCE_ROWS, store.manifest.n_rows("train"))
    sites = (config.source_site, config.target_site)
    products, total = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in batches(store, "train", COVARIANCE_BATCH, view=config.input_view, sites=sites, stop=rows, shuffle=False):
        y = batch.target.double()
        products, total = products + y.T @ y, total + y.sum(0)
    return products / rows - torch.outer(total, total) / rows**2


def of_view(mlp: Mlp, view: ViewName) -> Function:
    """mlp_out as a function of what a transcoder with this view reads."""
    if view == "raw":
        return mlp.forward
    if view == "normed":
        return mlp.inside
    norm = mlp.norm
    return lambda x: mlp.inside(x * norm.gain if norm.bias is None else x * norm.gain + norm.bias)


def mean_derivative(function: Function, x: Float[Tensor, "rows d_in"], d_out: int) -> Float[Tensor, "d_in d_out"]:
    """The mean over rows of the function's derivative; row j is its answer to a push of dimension j."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
    by_output = []
    for dimension in range(d_out):
        u = torch.zeros_like(y)
        u[:, dimension] = 1
        [direction] = torch.autograd.grad(y, x, u, retain_graph=True)
        by_output.append(direction.mean(0))
    return torch.stack(by_output, dim=1)


@torch.no_grad()
def start_decoder(module: TrainingTranscoder, store: Store, config: TrainConfig) -> None:
    """Sets the decoder's rows to the MLP's answers, at length 1 as drawn rows have; a latent without an answer keeps its
    own. The null that has a random decoder keeps all."""
    if config.null == "random_decoder":
        return
    assert store.mlp is not None
    device = module.encoder.device
    mlp = store.mlp.to(device, torch.float32)
    sites = (config.source_site, config.target_site)
    [batch] = batches(
        store,
        "train",
        START_ROWS,
        view=config.input_view,
        sites=sites,
        device=device,
        seed=config.seed,
        stop=START_ROWS,
    )
    answers = module.encoder @ mean_derivative(of_view(mlp, config.input_view), batch.source, module.decoder.shape[1])
    if module.target_root is not None:
        answers = answers @ module.target_root
    length = answers.norm(dim=1, keepdim=True)
    module.decoder.copy_(torch.where(length > 0, answers / length, module.decoder))
