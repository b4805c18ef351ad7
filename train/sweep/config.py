"""How to train many: the options of `python -m train sweep`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from tyro.constructors import PrimitiveConstructorSpec

from store.cli import Layers
from store.errors import Refused
from store.layout import default_run
from store.usage import did_you_mean
from train.config import Activation, TrainConfig
from train.layers.config import layers_of, options_of_layer


def _several(kind: Callable[[str], Any], metavar: str) -> PrimitiveConstructorSpec:
    """Values as a command line gives them: 32,64,128."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{metavar}[,{metavar}...]",
        is_instance=lambda value: isinstance(value, tuple),
        instance_from_str=lambda args: tuple(kind(part) for part in args[0].split(",")),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def _activation(text: str) -> str:
    if text in (known := get_args(Activation)):
        return text
    raise Refused(f"{text!r} is no activation; there are {', '.join(known)}{did_you_mean(text, known)}")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainConfig):
    """Train many dictionaries from one pass over the store: all combinations of k, d_sae, activation, lr and seed.

    Several values are written with commas (32,64,128). All other options are those of `python -m train`; all runs share
    them. Each run is bit for bit the run that it would be alone. Each seed has an order of the rows of its own, and so a
    pass of its own.

    The command writes a folder for each run. Beside these it writes summary.txt, summary.json and frontier.png: FVU against
    L0, on all held-out rows. Ctrl-C saves all runs, and the same command continues. With more values than before it trains
    only the new ones.
    """

    layer: Layers = 8  # type: ignore[assignment]  # one, or several
    """Layer whose MLP is replaced, from 0, or several (8,12 or 0-25, or all that data/MODEL holds), whose runs are trained
    step by step together: --store is then the folder that holds layer8, layer12, ..., and --run has {layer} in it."""
    run: Path | None = None
    """Folder of the sweep, with a folder for each run in it. Default: results/MODEL/layerL/sweep."""
    activation: Annotated[tuple[Activation, ...], _several(_activation, "ACTIVATION")] = ("batchtopk",)  # type: ignore[assignment]
    """Activation function, or several: batchtopk,jumprelu."""
    d_sae: Annotated[tuple[int, ...], _several(int, "INT")] = (18_432,)  # type: ignore[assignment]
    """Width of the dictionary, or several widths: 8192,16384."""
    k: Annotated[tuple[int, ...], _several(int, "INT")] = (32, 64, 128)  # type: ignore[assignment]
    """Mean active latents per row (L0), or several: 32,64,128."""
    lr: Annotated[tuple[float | None, ...], _several(float, "FLOAT")] = (None,)  # type: ignore[assignment]
    """Peak learning rate of Adam, or several: 2e-4,4e-4. Default: by steps and d_sae, as for one run."""
    seed: Annotated[tuple[int, ...], _several(int, "INT")] = (0,)  # type: ignore[assignment]
    """Seed of initialisation, data order and random prefixes, or several: 0,1,2. The runs of all but the first have it in
    the names of their folders."""
    nulls: bool = False
    """Also train the three nulls of each run of the first seed, into null/ in its folder."""

    def __post_init__(self) -> None:
        self.configs  # noqa: B018  # refuses a bad combination at the door

    @property
    def configs(self) -> list[TrainConfig]:
        """The options of each run, layer after layer, as `configs_of` has them."""
        return [one for layer in layers_of(self) for one in self.configs_of(layer)]

    def configs_of(self, layer: int) -> list[TrainConfig]:
        """The options of each run of a layer, seed after seed. Its folder bears its architecture, width, k and, where there
        are several, rate and seed; the first seed is not named, so that more seeds can be added to a sweep of one."""
        shared = options_of_layer(self, layer)
        folder = self.folder_of(layer)
        found = []
        for seed, activation, d_sae, k, lr in product(self.seed, self.activation, self.d_sae, self.k, self.lr):
            nulls = self.nulls and seed == self.seed[0]
            options = shared | {"activation": activation, "d_sae": d_sae, "k": k, "lr": lr, "seed": seed, "nulls": nulls}
            one = TrainConfig(**cast(dict[str, Any], options))
            rate = f"_lr{lr:g}" if len(self.lr) > 1 else ""
            of_seed = "" if seed == self.seed[0] else f"_seed{seed}"
            found.append(replace(one, run=folder / f"{one.architecture}_d{d_sae}_k{k}{rate}{of_seed}"))
        return found

    def folder_of(self, layer: int) -> Path:
        """The folder of a layer's runs and their comparison."""
        return options_of_layer(self, layer)["run"] or default_run(self.model, layer, "sweep")
