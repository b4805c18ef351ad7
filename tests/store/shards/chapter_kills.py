"""`python -m tests.store.shards.chapter_kills FOLDER POINTS`: appends that die at every file operation, and are resumed.

Two shards a chapter, so that chapters are written all the time. Each point is a store of some size whose next append dies
before or after one file operation. Then readers see the shards of before or one more, and the next writer leaves the files
of an append that nothing stopped.
"""

import gc
import os
import shutil
import sys
from itertools import count
from pathlib import Path

import torch

import store.shards.safetensors_files
from store.shards import manifest
from store.shards.manifest import MANIFEST, load_manifest
from store.shards.reader import find_damage
from store.shards.recipe import Recipe
from store.shards.writer import StoreWriter
from tests.killed import Killed, Life, files_of
from tests.making import make_norm, make_recipe, make_rows


def append(folder: Path, number: int, recipe: Recipe) -> None:
    """Opens the store as a new writer does, and appends this shard if it is lacking."""
    with StoreWriter(folder, recipe, make_norm()) as writer:
        if len(writer.manifest.shards) == number:
            writer.append(make_rows(number, recipe))


def died(folder: Path, number: int, recipe: Recipe, life: Life, last: int) -> bool:
    """Whether an append dies at a file operation: False where it needs fewer."""
    life.begin(last)
    try:
        append(folder, number, recipe)
    except Killed:
        return True
    finally:
        life.begin()
    return False


def check(folder: Path, number: int, whole: Path) -> None:
    """What a reader sees after a death: every shard of before, perhaps the new one, none of them damaged."""
    if not number and not (folder / MANIFEST).exists():
        return
    found = load_manifest(folder)
    assert len(found.shards) in (number, number + 1)
    assert found.shards == load_manifest(whole).shards[: len(found.shards)]
    assert find_damage(folder, found) == {}


def main(folder: Path, points: int) -> None:
    life = Life()
    os.fsync = life.mortal(lambda descriptor: None)
    Path.replace, Path.unlink = life.mortal(Path.replace), life.mortal(Path.unlink)
    store.shards.safetensors_files.reserve = life.mortal(store.shards.safetensors_files.reserve)
    manifest.LENGTH = 2  # type: ignore[misc]
    recipe = make_recipe(shard_sequences=3)
    before = folder / "0"
    before.mkdir()
    gc.collect()
    gc.freeze()
    n_points = n_chapters = 0
    for number in count():
        after = folder / f"{number + 1}"
        shutil.copytree(before, after)
        append(after, number, recipe)
        expected = files_of(after)
        n_chapters += len(load_manifest(after).chapters or ()) > len(load_manifest(before).chapters or ()) if number else 0
        for last in count():
            cut = folder / "cut"
            shutil.copytree(before, cut)
            if not died(cut, number, recipe, life, last):
                break
            gc.collect()  # a dead process holds no lock: neither may what the exception still refers to
            check(cut, number, after)
            append(cut, number, recipe)
            assert files_of(cut) == expected, f"shard {number}, killed at operation {last}"
            n_points += 1
            shutil.rmtree(cut)
            if n_points == points:
                print(
                    f"killed at {n_points} points of {number + 1} appends, {n_chapters} of them with a chapter: all sound"
                )
                return
        shutil.rmtree(cut)
        shutil.rmtree(before)
        before = after


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
