"""Before a harvest: the stores are opened, other harvests are refused, and the stores are locked, in one visit.

Nothing here imports the language model's libraries, so that a finished harvest answers at once.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harvest.config import HarvestConfig
from harvest.model.depth import check_layer, layers_of
from harvest.ranks import Rank
from harvest.text.mix import is_mix, sets_of
from harvest.text.origin import name_of, origin_of, revision_on_hub
from harvest.text.template import hash_of_template, read_template
from store.counts import ceil_div
from store.disk.lock import RemoteLock, WriterLock
from store.disk.remote import StorePath
from store.errors import Refused
from store.layout import METRIC_STATE, TRAIN_CONFIG, WEIGHTS
from store.shards.manifest import MANIFEST, Manifest, load_manifest
from store.shards.reader import check_sizes
from store.shards.writer import holds_shards, lock_for_writing


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What the stores of a harvest hold, none of them of another harvest."""

    config: HarvestConfig
    manifests: dict[int, Manifest]
    """By layer, where the store has one."""

    @property
    def finished(self) -> list[Manifest] | None:
        """The manifests, if every store has all shards asked for, or all that its text gives, and no metric or MLP is
        due."""
        if self.config.keeps_mlp and any(manifest.mlp is None for manifest in self.manifests.values()):
            return None
        if self.config.wants_metric and any(
            (directory / METRIC_STATE).exists() for directory in self.config.directories.values()
        ):
            return None
        complete = [m for m in self.manifests.values() if m.exhausted or len(m.shards) >= self.config.n_shards]
        return complete if len(complete) == len(self.config.layers) else None

    def finished_for(self, rank: Rank) -> list[Manifest] | None:
        """`finished`, if every process of torchrun sees the stores so: one may have looked before the last shards were
        entered, and the others then help it to the end."""
        return self.finished if all(rank.gather(self.finished is not None)) else None

    @property
    def finished_shards(self) -> dict[int, int]:
        """How many shards each store has."""
        return {layer: len(manifest.shards) for layer, manifest in self.manifests.items()}

    @contextlib.contextmanager
    def locked(self, rank: Rank) -> Iterator[dict[int, WriterLock | RemoteLock]]:
        """This rank's lock on every store, by layer. Whoever takes one out of the dict releases it.

        Folders that were made for the locks are removed again if nothing was written into them. Refused for a folder that
        cannot be written, Busy when another process writes a store.
        """
        locks: dict[int, WriterLock | RemoteLock] = {}
        with contextlib.ExitStack() as folders:
            try:
                for layer, directory in self.config.directories.items():
                    folders.callback(_remove_empty, _missing(directory))
                    locks[layer] = lock_for_writing(directory, rank.index)
                yield locks
            finally:
                for lock in locks.values():
                    lock.release()


def visit(config: HarvestConfig) -> Visit:
    """Opens the stores. Refused when one holds another harvest, as far as the options tell without a model.

    Damaged when a shard is missing or has another size than recorded.
    """
    for name, value in (("model", config.model), ("dataset", config.dataset)):
        if not value.strip():
            raise Refused(f"{name} is empty; give its name, or leave --{name} out for the default")
    manifests = {}
    for layer, directory in config.directories.items():
        if (directory / MANIFEST).exists():
            manifests[layer] = load_manifest(directory)
        elif (directory / WEIGHTS).exists() or (directory / TRAIN_CONFIG).exists():
            raise Refused(f"{directory} holds a run, among whose files shards do not belong; give another STORE")
    config = _with_size_of(config, manifests)
    if config.splits.most == 0:
        raise Refused(
            f"heldout_tokens is {config.heldout_tokens:,}, and a shard has {config.tokens_a_shard:,} tokens: none would be "
            "held out; give at least that many, or a smaller --shard-tokens"
        )
    origin = origin_of(config)
    for layer, manifest in manifests.items():
        directory = config.directories[layer]
        if holds_shards(directory, manifest):
            _refuse_another(config, layer, origin, manifest)
            check_sizes(directory, manifest)
    return Visit(config=config, manifests=manifests)


def refuse_what_is_known(config: HarvestConfig) -> None:
    """Refused for a layer that the model does not have, as far as its files are here, for a chat template that is none, and
    for a data set of the hub that cannot be had. Imports no library of models or data sets, which takes many seconds."""
    n_layers = layers_of(config.model, config.model_revision)
    if n_layers is not None:
        for layer in config.layers:
            check_layer(config.model, layer, n_layers)
    if config.chat_template is not None:
        read_template(config.chat_template)
    parts = [part for part, _ in sets_of(config)] if is_mix(config.dataset) else [config]
    for part in parts:
        if origin_of(part) is None:
            revision_on_hub(part)


def rounding_of(config: HarvestConfig) -> str | None:
    """What becomes of the tokens asked for, in words; None where whole shards hold exactly these."""
    taken = config.n_shards * config.tokens_a_shard
    if taken == config.tokens:
        return None
    sequences = f"{config.shard_sequences:,} sequence{'s' * (config.shard_sequences != 1)}"
    shards = f"{config.n_shards:,} whole shards of {sequences} of {config.context:,} tokens"
    line = f"{config.tokens:,} tokens asked for become {taken:,}: {shards}"
    if config.n_shards > ceil_div(config.tokens, config.tokens_a_shard):
        smaller = "--context" if config.shard_tokens is None else "--shard-tokens"
        line += f", since a store has at least {config.n_shards} shards; a smaller {smaller} takes fewer"
    return line


def _with_size_of(config: HarvestConfig, manifests: dict[int, Manifest]) -> HarvestConfig:
    """The options with the shard size of the store that is extended, where none was given.

    As they are where they lead to that size: a small harvest that was killed goes on to its ten shards.
    """
    sizes = [manifest.recipe.shard_sequences for manifest in manifests.values() if manifest.shards]
    if config.shard_tokens is not None or not sizes or sizes[0] == config.shard_sequences:
        return config
    return replace(config, shard_tokens=sizes[0] * config.context)


def _refuse_another(config: HarvestConfig, layer: int, origin: tuple[str, str] | None, manifest: Manifest) -> None:
    """Refused when a store was made with other options, as far as they tell without a model."""
    asked: dict[str, object] = {
        name: getattr(config, name)
        for name in ("model", "sites", "context", "seed", "text_column", "shard_sequences", "heldout_every", "dtype")
    }
    asked |= config.recorded_when_set
    asked |= {"layer": layer, "format": config.shard_format, "dataset_split": config.split}
    asked["dataset"] = name_of(config)
    if origin is not None:
        asked["dataset_revision"] = origin[1]
    if config.chat_template is not None:
        asked["chat_template"] = hash_of_template(read_template(config.chat_template))
    if config.compute_dtype != "auto":
        asked["compute_dtype"] = config.compute_dtype
    different = [
        f"{name}: {getattr(manifest.recipe, name)!r} != {value!r}"
        for name, value in asked.items()
        if getattr(manifest.recipe, name) != value
    ]
    if different:
        raise Refused(
            f"{config.directories[layer]} holds another harvest ({manifest.fingerprint}): {'; '.join(different)}; "
            "choose another STORE, or delete that one"
        )


def _missing(directory: StorePath) -> list[Path]:
    """The folders that must be made for a directory, the innermost first."""
    if not isinstance(directory, Path):
        return []
    return [folder for folder in (directory, *directory.parents) if not folder.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it holds something now
            folder.rmdir()
