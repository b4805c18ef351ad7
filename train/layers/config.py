"""How to train several layers together: the options of `python -m train`."""

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from store.cli import Count, Layers, Positive
from store.errors import Refused
from store.layers.parse import as_layers
from store.layers.words import LAYER
from store.parents import holds_store
from train.config import TrainConfig
from train.layers.pilots import LEAST_STEPS, pilot_ks, pilots_of

log = logging.getLogger(__name__)


def layers_of(config: TrainConfig) -> tuple[int, ...]:
    """The layers that the options name: one, or several."""
    return as_layers(config.layer)


def options_of_layer(config: TrainConfig, layer: int, **changes: Any) -> dict[str, Any]:
    """All options of `TrainConfig` for one of the layers, with changes. Refused for a path of several layers that names
    none."""
    several = len(layers_of(config)) > 1
    store = config.store
    run = config.run
    if several and run is not None and LAYER not in str(run):
        raise Refused(f"{run} is one folder for several layers; write {LAYER} where the number stands")
    if several and store is not None:
        if holds_store(store):
            raise Refused(f"{store} is the store of one layer; give the folder that holds layer8, layer12, ...")
        store = store / f"layer{layer}"
    if run is not None:
        run = Path(str(run).replace(LAYER, str(layer)))
    options = {field.name: getattr(config, field.name) for field in fields(TrainConfig)}
    return options | {"layer": layer, "store": store, "run": run} | changes


@dataclass(frozen=True, kw_only=True)
class LayersTrainConfig(TrainConfig):
    """Train a transcoder on cached activations, or one for each of several layers at once.

    The option --preset NAME puts a recipe of train/presets (gemma-2-2b-layer8, -layer12, -layer17, gemma-3-1b-layer13,
    gpt2-small-layer8, demo, demo-all) or a .toml file before the other options. The defaults are those of
    gemma-2-2b-layer8.

    Killed or interrupted, the same command continues from the last checkpoint. Once the run is finished, it does nothing.
    The command `python -m train sweep` trains many dictionaries from one pass over the store.
    """

    layer: Layers = 8  # type: ignore[assignment]  # one, or several
    """Layer whose MLP is replaced, from 0. It also names the default store and run. Beside --store: that store's. Several
    (8,12 or 0-25, or all that data/MODEL holds) are trained step by step together, each as it would be alone: --store is
    then the folder that holds layer8, layer12, ..., and --run has {layer} in it. Processes of torchrun share layers out."""
    layers_at_once: Positive | None = None
    """Train so many of several layers at a time, one group after the other, where memory does not hold them all. Each run
    is the same. Default: all layers."""
    total_l0: Positive | None = None
    """Active latents a row of all layers together, for batchtopk and topk, in place of --k, which then counts for nothing.
    Two short pilots of each layer first tell what twice as many save there of estimated KL, by the stores' metrics; each
    layer then gets k in proportion, between half and twice an equal share. Default: every layer has --k."""
    pilot_tokens: Count | None = None
    """Tokens that each pilot of --total-l0 is trained on. Default: a quarter of --tokens."""

    def __post_init__(self) -> None:
        if self.total_l0 is not None:  # --k stands for nothing then, and may not fit
            equal = max(1, self.total_l0 // len(layers_of(self)))
            if self.k not in (LayersTrainConfig.k, equal):
                log.warning(
                    "k is %d, but total_l0 gives each layer a k of its own, %d on average: leave k out", self.k, equal
                )
            object.__setattr__(self, "k", equal)
        super().__post_init__()
        for name in ("shard_dictionary", "shard_optimizer"):
            if len(layers_of(self)) > 1 and getattr(self, name):
                raise Refused(f"{name} is for processes that share a layer, but several are shared out whole; leave it out")
        self._check_budget()
        self.configs  # noqa: B018  # refuses a bad option at the door

    def _check_budget(self) -> None:
        total = self.total_l0
        n_layers = len(layers_of(self))
        if total is None:
            if self.pilot_tokens is not None:
                raise Refused(
                    f"pilot_tokens is {self.pilot_tokens}, but only total_l0 has pilots; leave it out, or give both"
                )
            return
        if self.activation not in ("batchtopk", "topk"):
            raise Refused(
                f"total_l0 needs batchtopk or topk, which have k active latents whatever the loss, but activation is "
                f"{self.activation}; leave one out"
            )
        if n_layers == 1:
            raise Refused(f"total_l0 is {total}, but for one layer; give several, or --k {total}")
        if not n_layers <= total <= n_layers * self.d_sae / self.k_start:
            most = int(n_layers * self.d_sae / self.k_start)
            raise Refused(
                f"total_l0 is {total}, but {n_layers} layers can have {n_layers} to {most} active latents; change it"
            )
        if self.follow:
            raise Refused("total_l0 needs the metrics of finished stores, which follow lacks; leave one out")
        steps = self.pilots[0][0].n_steps
        if steps < LEAST_STEPS:
            raise Refused(
                f"each pilot of total_l0 would have {steps} steps of {self.batch_rows} rows, which tell nothing; give "
                f"--pilot-tokens {LEAST_STEPS * self.batch_rows} or more, or a smaller --batch-rows"
            )

    @property
    def configs(self) -> list[TrainConfig]:
        """The options of each layer's run: with an equal share of total_l0 for k, if it is given."""
        return [TrainConfig(**options_of_layer(self, layer)) for layer in layers_of(self)]

    @property
    def pilots(self) -> list[list[TrainConfig]]:
        """The options of each layer's two pilots, of total_l0."""
        assert self.total_l0 is not None
        ks = pilot_ks(self.total_l0, len(layers_of(self)), int(self.d_sae / self.k_start))
        tokens = self.pilot_tokens or max(self.batch_rows, self.tokens // 4)
        return [pilots_of(one, ks, tokens) for one in self.configs]
