"""The typed record of a feature, and the arrays that contexts and relations travel in."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from evaluate.features.contexts import WIDTH, Contexts
from evaluate.features.neighbours import Related
from evaluate.features.records import FeatureRecord, histogram_of, related_features
from evaluate.features.write import SCHEMA

FORMAT = Path(__file__).parents[3] / "store" / "FORMAT.md"


def contexts(*latents: int) -> Contexts:
    numbers = np.arange(len(latents))
    window = np.tile(numbers[:, None].astype(np.float32), (1, WIDTH))
    return Contexts(np.array(latents, np.int32), numbers * 0.5, numbers.astype(np.int32), numbers.astype(np.int32), window)


def test_taken_contexts_are_the_same_rows_of_every_array():
    taken = contexts(0, 0, 3, 7).take(np.array([3, 1]))
    assert taken.latent.tolist() == [7, 0]
    assert taken.score.tolist() == [1.5, 0.5]
    assert taken.shard.tolist() == [3, 1]
    assert taken.position.tolist() == [3, 1]
    assert taken.value.tolist() == [3, 1]


def test_the_contexts_of_neighbouring_latents_are_cut_out():
    assert contexts(0, 0, 3, 7, 9).of_latents(np.arange(1, 8)).latent.tolist() == [3, 7]
    assert contexts(0, 0, 3).of_latents(np.arange(4, 6)).latent.tolist() == []


def test_concatenated_parts_follow_each_other():
    both = Contexts.concatenate([contexts(4, 5), contexts(6)])
    assert both.latent.tolist() == [4, 5, 6]
    assert both.score.tolist() == [0, 0.5, 0]
    assert both.window.shape == (3, WIDTH)
    part = Related(np.array([[1], [0]]), np.array([[0.5], [0.25]], np.float32), np.array([[9], [8]]))
    whole = Related.concatenate([part, part])
    assert whole.other.tolist() == [[1], [0], [1], [0]]
    assert whole.score.tolist() == [[0.5], [0.25], [0.5], [0.25]]
    assert whole.both is not None
    assert whole.both.tolist() == [[9], [8], [9], [8]]
    uncounted = Related(part.other, part.score)
    assert Related.concatenate([uncounted, uncounted]).both is None


def test_missing_relations_are_left_out():
    related = Related(np.array([[2, -1]]), np.array([[0.5, 0]], np.float32))
    assert related_features(related, 0) == [{"feature": 2, "score": 0.5, "both": 0}]


@pytest.mark.parametrize(("counts", "expected"), [([0, 3, 0, 1, 0], [3, 0, 1]), ([0, 0], [])])
def test_empty_outer_bins_are_left_out(counts, expected):
    histogram = histogram_of(np.array(counts))
    assert histogram["counts"] == expected
    assert len(histogram["edges"]) == (len(expected) + 1 if expected else 0)


def test_the_fields_of_a_record_are_the_columns_of_the_parquet():
    fields = {field.name for field in dataclasses.fields(FeatureRecord)}
    assert fields | {"contexts", "text"} == set(SCHEMA.names)


def test_format_md_describes_every_column():
    section = FORMAT.read_text().partition("### Activation samples")[2].partition("\n#")[0]
    names = []
    for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        names += re.findall(r"`(\w+)`", row)
    assert set(names) == set(SCHEMA.names)
