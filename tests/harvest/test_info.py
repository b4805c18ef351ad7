"""What `harvest info` says of a store."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from harvest.info import describe, document_of_rows, same_document_shares
from store.loader.batches import batches
from store.shards.reader import Store, find_damage
from tests.command import run
from tests.harvest.making import damage
from tests.making import EOS, make_store


def test_documents_are_counted_between_eos(store: Store):
    shard = store.manifest.shards[0]
    tokens, index = store.array(shard, "tokens").flatten().tolist(), store.array(shard, "token_index").tolist()
    expected = [sum(token == EOS for token in tokens[:place]) for place in index[: shard.kept]]
    assert document_of_rows(store, shard).tolist() == expected


def test_the_ideal_share_is_that_of_all_pairs_of_the_split(store: Store):
    documents = [
        (number, document)
        for number, shard in enumerate(store.manifest.of_split("train"))
        for document in document_of_rows(store, shard).tolist()
    ]
    same = sum(a == b for a, b in combinations(documents, 2)) / (len(documents) * (len(documents) - 1) / 2)
    assert same_document_shares(store, 16)[1] == pytest.approx(same)


def test_the_measured_share_is_that_of_the_batches_served(tmp_path):
    store = make_store(tmp_path, 6, shard_sequences=8)
    n = store.manifest.n_rows("train")
    place = {}
    for number, shard in enumerate(store.manifest.of_split("train")):
        for row, document in zip(
            store.array(shard, "mlp_out").float().numpy(), document_of_rows(store, shard), strict=False
        ):
            place[row.tobytes()] = (number, int(document))
    shares = []
    for batch in batches(store, "train", n, stop=n):
        counts = Counter(place[row.tobytes()] for row in batch.target.numpy()).values()
        shares.append(sum(c * (c - 1) for c in counts) / (n * (n - 1)))
    assert same_document_shares(store, n)[0] == pytest.approx(np.mean(shares))


def test_the_default_mix_is_within_a_tenth_of_the_ideal(tmp_path):
    store = make_store(tmp_path, 30, shard_sequences=256)
    found, ideal = same_document_shares(store, 1024)
    assert found == pytest.approx(ideal, rel=0.1)


def test_excluded_tokens_are_named_where_their_texts_can_be_had(tmp_path):
    store = make_store(tmp_path, excluded_tokens=(0, 2))
    assert "; excluded: 0 '<0>', 2 '<2>'\n" in describe(store, lambda tokens: f"<{tokens[0]}>")
    assert "; excluded: 0, 2\n" in describe(store, "no text")
    assert "; excluded: none\n" in describe(make_store(tmp_path / "all", excluded_tokens=()), "no text")


def test_a_description_says_what_how_much_and_shows_text(store: Store):
    text = describe(store, lambda tokens: f"{len(tokens)} tokens")
    for expected in (
        "tiny layer 1",
        store.fingerprint,
        "512",
        "safetensors, bfloat16",
        "shuffle",
        "'8 tokens'",
        "resid_mid.rms",
    ):
        assert expected in text
    assert "no text          no tokenizer here" in describe(store, "no tokenizer here")


def damage_three(store: Store) -> None:
    cut, flipped, lost = (store.directory / f"shard-0000{number}.safetensors" for number in (1, 2, 3))
    damage(flipped, cut, lost)


def test_every_damaged_shard_is_named_with_its_damage(store: Store):
    assert find_damage(store.directory, store.manifest) == {}
    damage_three(store)
    damage = find_damage(store.directory, store.manifest)
    assert list(damage) == [f"shard-0000{number}.safetensors" for number in (1, 2, 3)]
    assert [damage[name].split(",")[0] for name in damage] == [
        "has 1000 bytes",
        "has another checksum: its bytes changed on disk",
        "is missing",
    ]


def test_verify_exits_with_1_when_a_shard_is_damaged(store: Store, monkeypatch, capsys):
    assert run(monkeypatch, capsys, "store", "verify", "--store", str(store.directory))[0] == 0
    damage_three(store)
    code, errors = run(monkeypatch, capsys, "store", "verify", "--store", str(store.directory))
    assert code == 1
    assert "3 of 4 shards are damaged" in errors
