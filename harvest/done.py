"""Whether stores have all that is asked for: decided before the language model's libraries are imported."""

from harvest.config import HarvestConfig
from harvest.corpus import is_on_this_machine, open_corpus
from store.disk.remote import StorePath
from store.shards.manifest import MANIFEST, Manifest, load_manifest
from store.shards.reader import check_sizes
from store.shards.writer import holds_shards


def already_done(config: HarvestConfig) -> list[Manifest] | None:
    """The manifests of stores that have all that is asked for, judged by the options alone, without loading a model."""
    manifests = [
        load_manifest(directory) if (directory / MANIFEST).exists() else None for directory in config.directories.values()
    ]
    for (layer, directory), manifest in zip(config.directories.items(), manifests, strict=True):
        if manifest is not None and holds_shards(directory, manifest):
            _refuse_another(config, layer, directory, manifest)
            check_sizes(directory, manifest)
    finished = [m for m in manifests if m is not None and (m.exhausted or len(m.shards) >= config.n_shards)]
    return finished if len(finished) == len(manifests) else None


def _refuse_another(config: HarvestConfig, layer: int, directory: StorePath, manifest: Manifest) -> None:
    """ValueError when a store was made with other options, as far as they tell without a model."""
    asked: dict[str, object] = {
        name: getattr(config, name)
        for name in ("model", "sites", "context", "seed", "text_column", "shard_sequences", "heldout_every", "dtype")
    }
    asked |= {"layer": layer, "format": config.shard_format, "dataset_split": config.split}
    asked["dataset"] = config.dataset if config.subset is None else f"{config.dataset}:{config.subset}"
    if config.compute_dtype != "auto":
        asked["compute_dtype"] = config.compute_dtype
    if is_on_this_machine(config.dataset):
        corpus = open_corpus(config)
        asked |= {"dataset": corpus.name, "dataset_revision": corpus.revision}
    different = [
        f"{name}: {getattr(manifest.recipe, name)!r} != {value!r}"
        for name, value in asked.items()
        if getattr(manifest.recipe, name) != value
    ]
    if different:
        raise ValueError(
            f"{directory} holds another harvest ({manifest.fingerprint}): {'; '.join(different)}; "
            "choose another STORE, or delete that one"
        )
