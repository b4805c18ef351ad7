"""Options of `python -m harvest plan`."""

from dataclasses import dataclass
from typing import Annotated

from harvest.config import HarvestConfig
from harvest.planning.timing import Cluster
from store.cli import Positive, Range
from store.errors import Refused

Rate = Annotated[float, Range(0, above=True)]


@dataclass(frozen=True, kw_only=True)
class PlanConfig(HarvestConfig):
    """Say what a harvest takes (disk, time, memory, what limits it), from a few measured batches; write no store.

    The options are those of `python -m harvest`, and a cluster of machines like this one. The command writes a shard and
    64 MB beside the store and removes them.
    """

    gpus: Positive = 1
    """GPUs like the one that is measured, each with a process of torchrun and as many cores as that one has here. On a CPU:
    processes."""
    nodes: Positive = 1
    """Machines, each with an equal share of the GPUs."""
    disk_rate: Rate | None = None
    """MB a second that all processes write together to the place of the store. Default: what one process reaches here."""
    network_rate: Rate | None = None
    """GB a second that a machine sends to the place of the store and to the others: 50 over a network of 400 Gbit/s."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus % self.nodes:
            raise Refused(f"gpus is {self.gpus} and nodes {self.nodes}; give --gpus a multiple of --nodes")
        if self.gpus > 1 and self.device_map is not None:
            raise Refused(f"gpus is {self.gpus}, but device_map gives one process all GPUs of a machine; leave one out")

    @property
    def cluster(self) -> Cluster:
        return Cluster(
            gpus=self.gpus,
            nodes=self.nodes,
            disk_rate=None if self.disk_rate is None else self.disk_rate * 1e6,
            network_rate=None if self.network_rate is None else self.network_rate * 1e9,
        )
