"""Opens a store and reads its manifest, norm and single arrays; compares checksums. Training reads by store/loader."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash
from torch import Tensor
from tqdm import tqdm

from store.disk.files import hash_file, sizes_in
from store.disk.remote import StorePath, parse_store_path
from store.errors import Damaged, Refused
from store.layout import MLP_FILE, NORM_FILE
from store.mlp.files import load_mlp
from store.mlp.forward import Mlp
from store.mlp.info import MlpInfo
from store.mlp.proof import PROOF, PROOF_ROWS, recomputed_fvu
from store.shards.arrays import ArrayPlace, read_array
from store.shards.formats import FORMATS
from store.shards.manifest import Manifest, MetricInfo, ShardEntry, Split, load_manifest
from store.shards.ring import present
from store.views import Norm


@dataclass(frozen=True)
class Store:
    """An activation store on disk, opened for reading: sizes checked, checksums not (that is `verify`)."""

    directory: StorePath
    manifest: Manifest
    norm: Norm
    target: "Store | None" = None
    """Where targets are read, when that is another layer's store (pair.py)."""

    @property
    def target_side(self) -> "Store":
        return self.target or self

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def places(self, shard: ShardEntry) -> dict[str, ArrayPlace]:
        """Where the arrays of a shard lie, by name. Damaged when its header is."""
        return FORMATS[self.manifest.recipe.format].places(self.directory / shard.name)

    @cached_property
    def mlp(self) -> Mlp | None:
        """The layer's own MLP, on the host; None where the store does not keep it. Damaged when its file is."""
        info = self.manifest.mlp
        return None if info is None else load_mlp(self.directory, info, self.norm)

    @cached_property
    def _mlp_in_float32(self) -> Mlp:
        assert self.mlp is not None
        return self.mlp.to("cpu", torch.float32)

    def recomputes(self, site: str) -> bool:
        """Whether a site's rows are not in the shards, but computed by the MLP from those of the site that it reads."""
        return site in self.manifest.recipe.sites and site not in self.manifest.recipe.stored_sites

    def array(self, shard: ShardEntry, name: str) -> Tensor:
        """One whole array of a shard; of a site that is recomputed, all its rows in float32."""
        if self.recomputes(name):
            return self.rows(shard, name, slice(None))
        return read_array(self.directory / shard.name, self.places(shard)[name])

    def rows(self, shard: ShardEntry, site: str, index: Tensor | slice) -> Tensor:
        """Rows of a site of a shard, as stored, or recomputed in float32: this is the one place that tells them apart,
        beside the loader's.

        Args:
            shard: of this store.
            site: one of the recipe's.
            index: which rows; of a tensor of any shape, which the result begins with.
        """
        if not self.recomputes(site):
            return self.array(shard, site)[index]
        return self._mlp_in_float32(self.array(shard, self.norm.reads)[index])

    def proof(self, shard: ShardEntry) -> tuple[Tensor, Tensor]:
        """Some kept rows of the site that the MLP reads, and the true rows of mlp_out beside them."""
        path = self.directory / shard.name
        places = self.places(shard)
        n_rows = min(PROOF_ROWS, shard.kept)
        true = PROOF if self.recomputes("mlp_out") else "mlp_out"
        return read_array(path, places[self.norm.reads], n_rows), read_array(path, places[true], n_rows)

    def proven_fvu(self, shard: ShardEntry) -> float:
        """FVU of the MLP's rows against the true ones of `proof`, measured here."""
        return recomputed_fvu(self._mlp_in_float32, *self.proof(shard))

    def row_of_token(self, shard: ShardEntry) -> Tensor:
        """int64 [sequences, context]: where the rows of a shard hold each of its tokens."""
        return self.array(shard, "token_index").long().argsort().view(shard.n_sequences, -1)

    def kept_tokens(self, shard: ShardEntry) -> Tensor:
        """bool [sequences, context]: the tokens of a shard whose rows are kept, which come first."""
        return self.row_of_token(shard) < shard.kept


def open_store(directory: StorePath | str, manifest: Manifest | None = None) -> Store:
    """The store in a directory. Refused where there is none; Damaged when a shard is missing or of another size.

    manifest: where it was read already, or is to have some of the shards alone.
    """
    directory = parse_store_path(directory) if isinstance(directory, str) else directory
    manifest = present(directory, load_manifest(directory) if manifest is None else manifest)
    if not manifest.shards:
        raise Refused(f"{directory} has no finished shard yet; run `make harvest` until it has")
    check_sizes(directory, manifest)
    norm = Norm.load(directory / NORM_FILE, manifest.norm.kind, manifest.norm.eps, manifest.norm.reads)
    return Store(directory=directory, manifest=manifest, norm=norm)


def check_sizes(directory: StorePath, manifest: Manifest) -> None:
    """Damaged naming the first shard that is missing or has another size than recorded, but for deleted ones of a ring."""
    shards = present(directory, manifest).shards
    sizes = sizes_in(directory, [shard.name for shard in shards])
    for shard in shards:
        size = sizes.get(shard.name)
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise Damaged(f"{directory / shard.name} {found}, the manifest says {shard.bytes}; {_CURE}")


_CURE = "run `make repair` to harvest damaged shards again, or restore them from a copy"

HASHERS = 4
"""Threads that read and hash; hashing leaves Python free."""


def find_damage(
    directory: StorePath, manifest: Manifest, split: Split | None = None, part: slice = slice(None)
) -> dict[str, str]:
    """What is wrong with each damaged shard (of a split), by name: missing, of another size, or of another checksum.

    part: which of these shards are read.
    """
    shards = (manifest.shards if split is None else manifest.of_split(split))[part]
    n_bytes = sum(shard.bytes for shard in shards)
    with (
        ThreadPoolExecutor(max_workers=HASHERS) as pool,
        tqdm(desc="checksums", total=n_bytes, unit="B", unit_scale=True, leave=False, disable=bool(part.start)) as bar,
    ):

        def check(shard: ShardEntry) -> str | None:
            damage = damage_of(directory / shard.name, shard)
            bar.update(shard.bytes)
            return damage

        checked = zip(shards, pool.map(check, shards), strict=True)
        return {shard.name: damage for shard, damage in checked if damage is not None}


def damage_of_mlp(directory: StorePath, manifest: Manifest) -> str | None:
    """What is wrong with the MLP that a manifest describes: missing, or changed on disk. None where nothing is."""
    damage = None if manifest.mlp is None else damage_of(directory / MLP_FILE, manifest.mlp)
    return None if damage is None else f"{directory / MLP_FILE} {damage}"


def damage_of(path: StorePath, recorded: ShardEntry | MetricInfo | MlpInfo) -> str | None:
    """What is wrong with a file that the manifest describes: missing, of another size or checksum; None for nothing."""
    if not path.exists():
        return "is missing"
    size = path.stat().st_size
    if size != recorded.bytes:
        return f"has {size} bytes, the manifest says {recorded.bytes}"
    digest = xxhash.xxh3_128()
    hash_file(digest, path)
    return None if digest.hexdigest() == recorded.xxh3_128 else "has another checksum: its bytes changed on disk"


def check_shards(
    store: Store,
    split: Split | None = None,
    part: slice = slice(None),
    gather: Callable[[dict[str, str]], Sequence[dict[str, str]]] = lambda damage: [damage],
) -> None:
    """Damaged naming every damaged shard and its damage.

    part: which shards this process reads, of several that share them out.
    gather: brings together the damage that each of them found.
    """
    if store.target is not None:
        check_shards(store.target, split, part, gather)
    damage: dict[str, str] = {}
    for found in gather(find_damage(store.directory, store.manifest, split, part)):
        damage |= found
    if damage:
        named = "; ".join(f"{name} {what}" for name, what in sorted(damage.items()))
        raise Damaged(f"{store.directory} is damaged: {named}; {_CURE}")
