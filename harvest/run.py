"""`python -m harvest`: harvests what is lacking, and says what the stores hold."""

import logging
import time

from harvest.config import HarvestConfig
from harvest.planning.config import PlanConfig
from harvest.preflight import refuse_what_is_known, rounding_of, visit
from harvest.ranks import Rank
from harvest.text.origin import ignored_options
from store.counts import counted
from store.disk.suggest import next_line
from store.layers.parse import spell_layers

log = logging.getLogger(__name__)


def plan(config: PlanConfig) -> str:
    """What the harvest would take, as `harvest.planning.plan.plan` says, after what is refused without a model."""
    started = time.perf_counter()
    stores = visit(config)
    refuse_what_is_known(config)
    say_what_differs(stores.config)
    log.info("loading the libraries of models and data sets, then the model, to measure it")
    from harvest.planning.plan import plan as measured

    return measured(config, started, config.cluster)


def say_what_differs(config: HarvestConfig) -> None:
    """Logs what becomes of the tokens asked for, and options that change nothing; ranks other than 0 are silent."""
    if Rank.of_environment().index:
        return
    line = rounding_of(config)
    if line is not None:
        log.info("%s", line)
    for line in ignored_options(config):
        log.warning("%s", line)


def run(config: HarvestConfig) -> str:
    """A line for every finished store; empty for ranks other than 0."""
    rank = Rank.of_environment()
    stores = visit(config)
    manifests = stores.finished_for(rank)
    if manifests is None:
        refuse_what_is_known(config)
        say_what_differs(stores.config)
        log.info("loading the libraries of models and data sets")
        from harvest.loop import harvest_rest  # imports the language model's libraries, which takes seconds

        manifests = harvest_rest(stores)
    rank.close()
    if rank.index:
        return ""
    lines = []
    for manifest, directory in zip(manifests, config.directories.values(), strict=True):
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        lines.append(
            f"{directory}: {manifest.n_tokens:,} tokens in {counted(len(manifest.shards), 'shard')} ({megabytes:,.0f} MB), "
            f"{manifest.n_rows('train'):,} rows to train on, {manifest.n_rows('heldout'):,} held out; "
            f"fingerprint {manifest.fingerprint}"
        )
    if not config.keep_shards and {"resid_mid", "mlp_out"} <= {*config.sites}:  # else training needs options of its own
        rows = manifests[0].n_rows("train")  # one pass
        options = {"model": config.model, "layer": spell_layers(config.layers), "store": config.store, "tokens": rows}
        lines.append(next_line("train", "run", **options) or "")
    return "\n".join(lines).rstrip("\n")
