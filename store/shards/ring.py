"""A bounded cache: what harvester and trainer tell each other through two small files in the store's folder.

The trainer says up to where it has trained and saved; the harvester deletes those training shards, and no others, and
keeps the sums that it still needs of them. Each file has one writer and is replaced whole.
"""

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from store.disk.files import write_text
from store.disk.remote import StorePath
from store.errors import Damaged
from store.shards.manifest import Manifest, Recipe, ShardEntry

RING = "ring.json"
TRAINED = "trained.json"


class Ring(BaseModel):
    """The harvester's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    keep_shards: int
    """Training shards on disk at a time, at most."""
    deleted: int = 0
    """Training shards with a smaller number are gone."""
    sums: dict[str, tuple[float, ...]] = {}
    """`sum.S` and `sum_of_squares.S` of the deleted shards, added up in their order."""

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in self.sums.items()}


class Trained(BaseModel):
    """The trainer's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    runs: tuple[str, ...]
    """Folders of the runs that are trained on this ring, and the only ones that can be."""
    shards: int
    """Training shards with a smaller number are trained on, and that is saved: nobody needs them."""
    finished: bool = False
    """No further shard is needed."""


def load_ring(directory: StorePath) -> Ring | None:
    """None where the store is no ring."""
    return _load(directory / RING, Ring)


def load_trained(directory: StorePath) -> Trained | None:
    """None where no trainer has come yet."""
    return _load(directory / TRAINED, Trained)


def _load(path: StorePath, kind):
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise Damaged(f"{path} is damaged ({error.errors()[0]['msg']}); restore it, or delete the store") from None


def save(directory: StorePath, state: Ring | Trained) -> None:
    write_text(directory / (RING if isinstance(state, Ring) else TRAINED), state.model_dump_json() + "\n")


def number_of(shard: ShardEntry) -> int:
    return shard.first_sequence // shard.n_sequences


def present(directory: StorePath, manifest: Manifest) -> Manifest:
    """The manifest without the training shards that the harvester has deleted, or may delete at any moment.

    Damaged when ring.json or trained.json cannot be read.
    """
    ring = load_ring(directory)
    if ring is None:
        return manifest
    trained = load_trained(directory)
    return from_shard(manifest, max(ring.deleted, trained.shards if trained else 0))


def from_shard(manifest: Manifest, first: int) -> Manifest:
    """The manifest without the training shards of smaller numbers."""
    left = tuple(shard for shard in manifest.shards if shard.split == "heldout" or number_of(shard) >= first)
    return manifest.model_copy(update={"shards": left})


def has_room(recipe: Recipe, number: int, keep: int, trained: int) -> bool:
    """Whether shard `number` may be written beside those that are not trained on yet."""
    return recipe.split_of(number) == "heldout" or sum(recipe.split_of(n) == "train" for n in range(trained, number)) < keep
