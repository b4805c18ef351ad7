"""Several processes under torchrun against one: the same training up to the rounding of sums, the same checkpoints, whether
two share the rows of a batch or the latents of the dictionary, or four both, with a sharded optimizer and without."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from store.cli import parse
from store.errors import Refused
from store.shards.ring import Ring, load_trained, save
from tests.child import forked, python
from tests.making import make_store, with_metric
from tests.train.making import make_config, results_of
from tests.train.torchrun import (
    BEGUN,
    KINDS,
    RESUMED,
    SAVED,
    STOPPED,
    before_step,
    begin,
    begin_on_another_layout,
    configs,
    poison,
    save_again,
)
from train.checks import check_one_stream
from train.config import TrainConfig
from train.loop import train
from train.parallel import Ranks, join
from train.presets import options_of
from train.step.module import TrainingTranscoder
from train.step.optimizer import make_optimizer

TORCHRUN = "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node"
"""Whatever the machine is called, and whether that name leads anywhere."""
FORKS = """
import sys
from pathlib import Path
import train.loop
from tests.train.torchrun import processes

processes(Path(sys.argv[1]), 4)
processes(Path(sys.argv[1]), 2)
"""


@dataclass(frozen=True)
class Both:
    """The runs of one process and of several; some of the latter changed from one to several, or from several to one."""

    alone: dict[str, TrainConfig]
    together: dict[str, TrainConfig]
    said: dict[int, list[list[str]]]
    """Of two processes and of four, by process, lines in their order."""

    def pairs(self) -> Iterator[tuple[str, TrainConfig, TrainConfig]]:
        """Each run of several processes by name, and what one process made of the same options."""
        for name, config in self.together.items():
            shared, kind = name.split("-", 1)
            if kind != "bad":
                one = shared if kind == "followed" else "latents"
                yield name, self.alone[f"{one}-{(STOPPED | RESUMED).get(name, kind)}"], config


@pytest.fixture(params=["forks", pytest.param("torchrun", marks=pytest.mark.slow)])
def both(request, tmp_path_factory) -> Both:
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for folder in folders:
        with_metric(make_store(folder / "store"))
        make_store(folder / "ring")
        save(folder / "ring", Ring(keep_shards=4))
    alone, together = map(configs, folders)
    for kind in BEGUN:
        begin(together[f"latents-{kind}"])
        save_again(together[f"latents-{kind}"], Ranks(), folders[0] / f"again-{kind}")
    begin_on_another_layout(together)
    for name in (*(f"latents-{kind}" for kind in KINDS), "rows-followed"):
        train(alone[name])
    with before_step(SAVED - 4, poison), pytest.raises(ValueError, match="not finite at step 7"):
        train(alone["latents-bad"])
    if request.param == "forks":
        forked(FORKS, str(folders[1]))
    else:
        for world in "42":
            python(*TORCHRUN.split(), world, "tests/train/torchrun.py", str(folders[1]), GLOO_SOCKET_IFNAME="lo")
    for name in STOPPED:
        train(replace(together[name], shard_dictionary=False))
    said = {
        world: [(folders[1] / f"said-{world}-{rank}").read_text().splitlines() for rank in range(world)] for world in (2, 4)
    }
    return Both(alone, together, said)


def test_several_processes_train_what_one_does_up_to_rounding(both, subtests):
    for name, one, two in both.pairs():
        with subtests.test(name):
            check_same_training(one, two)
    with subtests.test("checkpoints and artefacts are the same, bit for bit, whoever writes them"):
        folders = [runs["latents-bad"].run_directory.parent for runs in (both.alone, both.together)]
        for kind, world, file in product(BEGUN, (2, 4), ("checkpoint.safetensors", "transcoder.safetensors")):
            one = load_file(folders[0] / f"again-{kind}" / file)
            others = load_file(folders[1] / f"again-{world}-{kind}" / file)
            assert one.keys() == others.keys()
            assert all(torch.equal(array, others[name]) for name, array in one.items())
    with subtests.test("Ctrl-C for one and a loss that is not finite stop all"):
        told = [f"{shared}-stopped: stopped" for shared in ("rows", "zero", "latents")]
        told.append("latents-bad: the loss is not finite at step 7 ")
        assert both.said == {2: [told] * 2, 4: [["grid-stopped: stopped"]] * 4}
        one, two = (
            load_file(runs["latents-bad"].run_directory / "nonfinite.safetensors") for runs in (both.alone, both.together)
        )
        for name, array in one.items():
            torch.testing.assert_close(two[name], array, equal_nan=name == "module.watch.mean")
    with subtests.test("a ring's harvester is told what one process would tell it"):
        told = [load_trained(runs["rows-followed"].store_directory) for runs in (both.alone, both.together)]
        assert told[0] is not None
        assert told[1] is not None
        assert told[1].finished
        assert told[1].shards == told[0].shards == 3


def check_same_training(one: TrainConfig, two: TrainConfig) -> None:
    (weights, log), (others, other_log) = results_of(one), results_of(two)
    assert weights.keys() == others.keys()
    for array, values in weights.items():
        assert (others[array] - values).norm() <= 1e-4 * values.norm(), array
    for record, other in zip(log, other_log, strict=True):
        assert record.keys() == other.keys()
        for name, value in record.items():
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_a_process_holds_its_own_latents_only(store):
    """Of each latent 25 weights (gated), Adam's 50, a counter and a group; and 62 numbers that are not of latents."""
    config = make_config(d_sae=41, activation="gated")
    for ranks, latents in [(Ranks(), 41)] + [(Ranks(rank, 3, sharers=3), 14 - rank // 2) for rank in range(3)]:
        module = TrainingTranscoder(config, store.manifest, store.norm, "float32", ranks=ranks)
        optimizer = make_optimizer(module, 1e-3)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        held = [*module.parameters(), *(b for name, b in module.named_buffers() if not name.startswith("watch"))]
        held += [moment for state in optimizer.state.values() for moment in state.values()]
        assert sum(tensor.numel() for tensor in held) == latents * (3 * 25 + 2) + 62


def test_a_dictionary_starts_with_the_same_latents_whoever_holds_them(store, monkeypatch):
    monkeypatch.setattr("train.step.module.CHUNK", 8)
    config = make_config(d_sae=41)
    whole = TrainingTranscoder(config, store.manifest, store.norm, "float32").state_dict()
    for rank in range(3):
        part = TrainingTranscoder(config, store.manifest, store.norm, "float32", ranks=Ranks(rank, 3, sharers=3))
        assert torch.equal(part.encoder, whole["encoder"][rank::3])
        assert torch.equal(part.decoder, whole["decoder"][rank::3])
        assert part.group_of.tolist() == [sum(latent >= size for size in config.prefixes) for latent in range(rank, 41, 3)]


def test_a_group_smaller_than_the_processes_is_refused():
    config = make_config(prefix_sizes="3,5,40", shard_dictionary=True)
    with pytest.raises(ValueError, match="smallest group of prefix_sizes has 2 latents, but .* each of 3 processes"):
        check_one_stream([config], Ranks(0, 3, sharers=3))
    check_one_stream([config], Ranks(0, 2, sharers=2))


@pytest.mark.parametrize("shared", ["shard_dictionary", "shard_optimizer"])
def test_following_a_harvest_with_what_is_saved_together_is_refused(shared):
    with pytest.raises(ValueError, match=f"{shared} and follow do not go together"):
        make_config(**{shared: True}, follow=True)


def test_ranks_left_over_in_a_shell_are_named_with_the_cure(monkeypatch):
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Refused, match="WORLD_SIZE is 4, but LOCAL_RANK is not set: start the processes with torchrun;"):
        join("cpu")


def test_rows_that_processes_cannot_share_are_refused():
    with pytest.raises(ValueError, match="batch_rows 32 cannot be shared evenly by 3 processes"):
        check_one_stream([make_config()], Ranks(0, 3))
    check_one_stream([make_config()], Ranks(0, 3, sharers=3))


@pytest.mark.parametrize(("world", "sharers"), [("4", 3), ("2", 4), ("1", 8)])
def test_processes_that_dictionaries_cannot_share_evenly_are_refused(monkeypatch, world, sharers):
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(Refused, match=f"shard_dictionary is {sharers}, but {world} process.* a multiple of {sharers}"):
        join("cpu", sharers)


@pytest.mark.parametrize(
    ("words", "sharers"), [([], False), (["--shard-dictionary"], True), (["--shard-dictionary", "8"], 8)]
)
def test_the_number_of_processes_that_share_a_dictionary_may_be_left_out(words, sharers):
    assert parse(TrainConfig, "train", [*words, "--d-sae", "4096"]).shard_dictionary is sharers
    assert parse(TrainConfig, "train", ["--d-sae", "4096", *words]).shard_dictionary is sharers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["8", "4"], "--shard-dictionary 8 4: '4' is one number too many; give one"),
        (["some"], "--shard-dictionary some: it takes a number of processes, such as 8"),
    ],
)
def test_words_that_are_no_number_of_processes_are_refused(words, said):
    with pytest.raises(Refused, match=said):
        parse(TrainConfig, "train", ["--shard-dictionary", *words])


@pytest.mark.parametrize(("said", "sharers"), [("true", True), ("false", False), ("4", 4)])
def test_a_recipe_may_say_how_a_dictionary_is_shared(tmp_path, said, sharers):
    (tmp_path / "mine.toml").write_text(f"shard_dictionary = {said}\n")
    assert parse(TrainConfig, "train", options_of(str(tmp_path / "mine.toml"))).shard_dictionary == sharers
