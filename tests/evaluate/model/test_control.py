"""Controls: drawn by a seed among the latents that fire alike, and run beside an intervention."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluate.model.config import InterveneConfig
from evaluate.model.control import NEAREST, control_of, controls_of
from evaluate.model.intervene import intervene
from store.errors import Damaged, Refused

DENSITY = np.array([0.1] * 30 + [0.0] + [0.001] * 40)
MEAN = np.array([2.0] * 30 + [0.0] + [2.0] * 20 + [90.0] * 20)


def test_a_control_is_drawn_by_its_seed_among_the_latents_that_fire_alike():
    drawn = [control_of(DENSITY, MEAN, 3, seed) for seed in range(200)]
    found = {each.control for each in drawn}
    assert found <= set(range(30)) - {3}
    assert len(found) == NEAREST
    assert control_of(DENSITY, MEAN, 3, 7) == drawn[7]
    assert (drawn[0].density, drawn[0].control_density, drawn[0].control_mean_activation) == (0.1, 0.1, 2.0)
    assert {control_of(DENSITY, MEAN, 60, seed).control for seed in range(200)} == set(range(51, 71)) - {60} | {31}


def test_nearest_are_those_of_the_smallest_ratios_of_both():
    generator = np.random.default_rng(5)
    density = generator.uniform(0.001, 0.2, 100)
    mean = generator.uniform(0.5, 20, 100)
    apart = [abs(np.log(d / density[8])) ** 2 + abs(np.log(m / mean[8])) ** 2 for d, m in zip(density, mean, strict=True)]
    nearest = set(np.argsort(apart)[1 : NEAREST + 1].tolist())
    assert {control_of(density, mean, 8, seed).control for seed in range(200)} == nearest


def test_a_silent_latent_has_no_control_and_neither_has_a_lonely_one():
    assert control_of(DENSITY, MEAN, 30) is None
    assert control_of(np.array([0.5, 0.0]), np.array([1.0, 0.0]), 0) is None
    assert control_of(DENSITY, MEAN, 0, taken=[*range(1, 29), *range(31, 71)]).control == 29


@pytest.fixture
def config(on_tiny_model, tmp_path) -> InterveneConfig:
    out = tmp_path / "out.json"
    latent = int(np.argmax(pq.read_table(features_of(on_tiny_model.run))["density"].to_numpy()))
    where = dict(run=on_tiny_model.run, device="cpu", out=out)
    return InterveneConfig(**where, text="The quick brown fox.", ablate=(latent,), control=True)


def features_of(run):
    return run / "activation_samples" / "features.parquet"


def test_the_control_s_effect_is_that_of_changing_it_itself(config, capsys):
    intervene(config)
    found = json.loads(config.out.read_text())
    said = capsys.readouterr().out
    [control] = found["control"]["latents"]
    assert found["control"]["edits"] == [{"latent": control["control"], "kind": "ablate", "amount": 0.0}]
    intervene(dataclasses.replace(config, control=False))
    assert json.loads(config.out.read_text()) == {key: value for key, value in found.items() if key != "control"}
    intervene(dataclasses.replace(config, control=False, ablate=(control["control"],)))
    alone = json.loads(config.out.read_text())
    for key in ("kl_mean", "delta_ce", "tokens", "most_affected"):
        assert found["control"][key] == alone[key]
    rows = [line.split() for line in said.splitlines() if line.startswith(("ablate", "control: ablate"))][-2:]
    assert rows[0][:2] == ["ablate", str(control["latent"])]
    assert rows[1][:3] == ["control:", "ablate", str(control["control"])]
    for row, figures in zip(rows, (found, found["control"]), strict=True):
        assert row[-2:] == [f"{figures['kl_mean']:.4g}", f"{figures['delta_ce']:+.4f}"]
    assert "drawn by seed 0" in said


def test_several_latents_have_different_controls(config):
    first, second, third, *_ = np.argsort(-pq.read_table(features_of(config.run))["density"].to_numpy()).tolist()
    intervene(dataclasses.replace(config, ablate=(first,), pin=(f"{second}:2",), scale=(f"{third}:3",), seed=4))
    found = json.loads(config.out.read_text())["control"]
    latents = [*(each["latent"] for each in found["latents"]), *(each["control"] for each in found["latents"])]
    assert len(set(latents)) == 6
    assert [(edit["kind"], edit["amount"]) for edit in found["edits"]] == [("ablate", 0.0), ("scale", 3.0), ("pin", 2.0)]


def test_without_features_or_with_damaged_ones_a_control_is_refused(tmp_path):
    with pytest.raises(Refused, match="a control needs the features of .*; collect them with make features RUN="):
        controls_of(tmp_path, [1], 0)
    features_of(tmp_path).parent.mkdir()
    features_of(tmp_path).write_text("PAR1")
    with pytest.raises(Damaged, match=r"features.parquet cannot be read \("):
        controls_of(tmp_path, [1], 0)
    pq.write_table(pa.table({"density": DENSITY, "mean_activation": MEAN}), features_of(tmp_path))
    with pytest.raises(Refused, match="latent 30 has no control: on the collected rows it never fires"):
        controls_of(tmp_path, [30], 0)
