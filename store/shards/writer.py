"""Writes a store: shards become visible only whole, in order, and once, so that a killed writer leaves a valid store."""

import re
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from store.disk.files import appearing_whole, refuse_unwritable, write_text
from store.disk.lock import WRITER_LOCK, RemoteLock, WriterLock, lock_of
from store.disk.remote import StorePath
from store.errors import Damaged, Refused
from store.layout import NORM_FILE
from store.mlp.files import save_mlp
from store.mlp.forward import Mlp
from store.mlp.proof import PROOF, PROOF_ROWS, check_fvu, recomputed_fvu
from store.shards.arrays import read_array
from store.shards.entries import sums_after
from store.shards.formats import FORMATS, writer_for
from store.shards.manifest import (
    MANIFEST,
    Manifest,
    Moments,
    NormInfo,
    Pending,
    Recipe,
    ShardEntry,
    cure_of_manifest,
    load_manifest,
    save_manifest,
    with_chapter,
)
from store.shards.reader import Store, check_sizes
from store.shards.ring import Ring, load_ring, present, save
from store.shards.rows import ShardRows, shard_arrays
from store.shards.sums import added
from store.views import Norm


def _lock_path(directory: StorePath, rank: int) -> StorePath:
    return directory / (f"writer-{rank}.lock" if rank else WRITER_LOCK)


def lock_for_writing(directory: StorePath, rank: int = 0) -> WriterLock | RemoteLock:
    """The lock of a rank's writer, in a folder that is made if need be; to be given to a StoreWriter, or released.

    Refused when the folder cannot be written, Busy when another process writes the store.
    """
    if isinstance(directory, Path):
        refuse_unwritable(directory, "store", "STORE")
    directory.mkdir(parents=True, exist_ok=True)
    return lock_of(_lock_path(directory, rank))


def holds_shards(directory: StorePath, manifest: Manifest) -> bool:
    """Whether a store has anything that another harvest in its place would lose."""
    return bool(manifest.shards) or any(directory.glob("shard-*"))


class StoreWriter:
    """Appends shards to a store, continuing one that the same recipe began; the only writer of its rank.

    Of several processes, each publishes shards of its own numbers (number mod world is its rank), and rank 0 enters them
    in the manifest in order. Refused when the directory holds a store of another recipe (both are shown), Busy when
    another process is writing it.

    directory: of the store; made where it is missing.
    recipe: decides the numbers.
    norm: goes to norm.safetensors, and into the statistics of the rms view.
    mlp: goes to mlp.safetensors, also of a store that has none yet; where the recipe has targets recomputed, every shard
        is refused whose rows it does not give back.
    rank, world: which of how many processes this is.
    lock: from `lock_for_writing`, and the writer's from then on; taken here where it is not given.
    """

    def __init__(
        self,
        directory: StorePath,
        recipe: Recipe,
        norm: Norm,
        rank: int = 0,
        world: int = 1,
        lock: WriterLock | RemoteLock | None = None,
        mlp: Mlp | None = None,
    ) -> None:
        self.directory = directory
        self.recipe = recipe
        self.norm = norm
        self.mlp = mlp
        self.rank = rank
        self.world = world
        self.unlinked = 0
        """Training shards with a smaller number were deleted by this writer."""
        self.format = FORMATS[recipe.format]
        self.write = writer_for(recipe.format)
        directory.mkdir(parents=True, exist_ok=True)
        self.lock = lock or lock_of(_lock_path(directory, rank))
        try:
            self.manifest = self._open_or_create()
            self._clear_leftovers()
            self.sums = self._sums_on_disk() if rank == 0 else {}
            if rank == 0:
                self.commit()
        except BaseException:
            self.lock.release()
            raise

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.lock.release()

    def _open_or_create(self) -> Manifest:
        directory = self.directory
        recipe = self.recipe
        norm = self.norm
        if (directory / MANIFEST).exists() and holds_shards(directory, manifest := load_manifest(directory)):
            if manifest.recipe != recipe:
                raise Refused(
                    f"{directory} holds another harvest ({manifest.fingerprint}, this one is {recipe.fingerprint}): "
                    f"{manifest.recipe.differences(recipe)}; choose another STORE, or delete that one"
                )
            if self.rank == 0:
                check_sizes(directory, manifest)
            return self._with_mlp(manifest)
        if self.rank == 0 and self._path(0).exists():
            raise Damaged(f"{directory} has shards, but no {MANIFEST}; {cure_of_manifest(directory)}")
        manifest = Manifest(
            format_version=1,
            fingerprint=recipe.fingerprint,
            recipe=recipe,
            norm=NormInfo(kind=norm.kind, eps=norm.eps, reads=norm.reads),
            widths={},
            statistics={},
            shards=(),
        )
        if self.rank == 0:
            norm.save(directory / NORM_FILE)
            save_manifest(directory, manifest)
        return self._with_mlp(manifest)

    def _with_mlp(self, manifest: Manifest) -> Manifest:
        """The manifest once the MLP is kept, if it is to be; rank 0 writes both."""
        if self.mlp is None or manifest.mlp is not None:
            return manifest
        if manifest.shards and self.rank == 0:
            shard = present(self.directory, manifest).shards[-1]
            store = Store(directory=self.directory, manifest=manifest, norm=self.norm)
            check_fvu(recomputed_fvu(self.mlp, *store.proof(shard)), f"{self.directory / shard.name}")
        if self.rank == 0:
            manifest = manifest.with_mlp(save_mlp(self.directory, self.mlp))
            save_manifest(self.directory, manifest)
        return manifest

    def _clear_leftovers(self) -> None:
        """Removes what killed writers left of this rank's files: another rank may be at its own."""
        for leftover in self.directory.glob("*.partial"):
            number = re.match(r"shard-(\d+)", leftover.name)
            if (int(number[1]) % self.world if number else 0) == self.rank:
                leftover.unlink()
        if self.rank == 0:
            entered = {self._pending_path(number).name for number in range(len(self.manifest.shards))}
            for pending in self.directory.glob("shard-*.entry.json"):
                if pending.name in entered:
                    pending.unlink()

    def _sums_on_disk(self) -> dict[str, Tensor]:
        """Running sums over the training shards, added up in the order in which they were written."""
        ring = load_ring(self.directory)
        first, sums = (ring.deleted, ring.tensors()) if ring else (0, {})
        if (in_chapters := self.manifest.n_in_chapters) > first:
            first, sums = in_chapters, sums_after(self.directory, self.manifest)
        for shard in self.manifest.shards[first:]:
            if shard.split == "train":
                sums = added(sums, self._sums_of(shard))
        return sums

    def finished(self, number: int) -> bool:
        """Whether a shard is in the manifest, or whole and waiting for its turn."""
        return number < len(self.manifest.shards) or self._pending(number) is not None

    def append(self, rows: ShardRows, number: int | None = None) -> ShardEntry:
        """The entry of the shard written, the next one if no number is given.

        OSError when the disk is full: finished shards stay, nothing half-written.
        """
        number = len(self.manifest.shards) if number is None else number
        recipe = self.recipe
        arrays, kept, far = shard_arrays(rows, number, recipe, self.norm)
        sums = {key: value for key, value in arrays.items() if key.startswith(("sum.", "sum_of_squares."))}
        proven = self._proven_fvu(arrays, kept, number)
        entry_bytes, checksum = self._publish(self._path(number), arrays)
        entry = ShardEntry(
            name=self._path(number).name,
            split=recipe.split_of(number),
            rows=rows.tokens.numel(),
            kept=kept,
            bytes=entry_bytes,
            xxh3_128=checksum,
            first_sequence=number * recipe.shard_sequences,
            n_sequences=len(rows.tokens),
            first_document=rows.first_document,
            next_document=rows.next_document,
            rest=rows.rest,
            bad_records=rows.bad_records or None,
            repeats=rows.repeats or None,
            excluded_by_norm=None if recipe.exclude_norm is None else far,
            recomputed_fvu=proven,
            summed_on=rows.device,
            batch_sequences=rows.batch_sequences,
        )
        pending = Pending(
            fingerprint=recipe.fingerprint,
            widths={site: values.shape[1] for site, values in rows.sites.items()},
            entry=entry,
        )
        if self.rank == 0 and number == len(self.manifest.shards):
            self._enter(pending, sums)
        else:
            write_text(self._pending_path(number), pending.model_dump_json(indent=1) + "\n")
        if self.rank == 0:
            self.commit()
        return entry

    def _proven_fvu(self, arrays: dict[str, Tensor], kept: int, number: int) -> float | None:
        """FVU of recomputed rows against a shard's proof; None where mlp_out is stored. Refused above the limit."""
        if self.recipe.targets is None:
            return None
        assert self.mlp is not None
        resid = arrays[self.norm.reads][: min(PROOF_ROWS, kept)]
        found = recomputed_fvu(self.mlp, resid, arrays[PROOF])
        check_fvu(found, f"shard {number}")
        return found

    def commit(self) -> None:
        """Enters the shards, of any rank, that are whole and next in order."""
        while (pending := self._pending(number := len(self.manifest.shards))) is not None:
            self._enter(pending, self._sums_of(pending.entry))
            self._pending_path(number).unlink()

    def _path(self, number: int) -> StorePath:
        return self.directory / f"shard-{number:05d}{self.format.suffix}"

    def _pending_path(self, number: int) -> StorePath:
        return self.directory / f"shard-{number:05d}.entry.json"

    def _pending(self, number: int) -> Pending | None:
        path = self._pending_path(number)
        if not path.exists():
            return None
        try:
            pending = Pending.model_validate_json(path.read_bytes())
        except ValidationError:
            raise Damaged(f"{path} is damaged; delete it: its shard is then harvested again") from None
        return pending if pending.fingerprint == self.recipe.fingerprint else None

    def _sums_of(self, shard: ShardEntry) -> dict[str, Tensor]:
        path = self.directory / shard.name
        places = self.format.places(path).items()
        return {name: read_array(path, place) for name, place in places if name.startswith(("sum.", "sum_of_squares."))}

    def _publish(self, path: StorePath, arrays: dict[str, Tensor]) -> tuple[int, str]:
        with appearing_whole(path, sum(array.nbytes for array in arrays.values())) as partial:
            return self.write(partial, arrays)

    def _enter(self, pending: Pending, sums: dict[str, Tensor]) -> None:
        entry = pending.entry
        if entry.split == "train":
            self.sums = added(self.sums, sums)
        rows = max((moments.rows for moments in self.manifest.statistics.values()), default=0)
        rows += entry.kept if entry.split == "train" else 0
        statistics = {}
        for name in (key.removeprefix("sum.") for key in self.sums if key.startswith("sum.")):
            mean = self.sums[f"sum.{name}"] / rows
            mean_square = self.sums[f"sum_of_squares.{name}"] / rows
            statistics[name] = Moments(rows=rows, mean=tuple(mean.tolist()), mean_square=tuple(mean_square.tolist()))
        changes = {"widths": pending.widths, "statistics": statistics, "shards": (*self.manifest.shards, entry)}
        self.manifest = with_chapter(self.directory, self.manifest.model_copy(update=changes), self.sums)
        save_manifest(self.directory, self.manifest)

    def keep_ring(self, keep: int, trained: int) -> None:
        """Makes this a ring of `keep` training shards, and deletes those numbered below `trained`, their sums kept."""
        before = load_ring(self.directory) or Ring(keep_shards=keep)
        sums = before.tensors()
        for shard in self.manifest.shards[before.deleted : trained]:
            if shard.split == "train":
                sums = added(sums, self._sums_of(shard))
        deleted = max(trained, before.deleted)
        sums_kept = {name: tuple(values.tolist()) for name, values in sums.items()}
        save(self.directory, Ring(keep_shards=keep, deleted=deleted, sums=sums_kept))
        for shard in self.manifest.shards[self.unlinked : deleted]:
            if shard.split == "train":
                (self.directory / shard.name).unlink(missing_ok=True)
        self.unlinked = deleted

    def mark_exhausted(self) -> None:
        """Records that the text ended before the tokens asked for were reached."""
        self.manifest = self.manifest.model_copy(update={"exhausted": True})
        save_manifest(self.directory, self.manifest)
