"""Conversations through the tokenizer's template, and ids that were made elsewhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from harvest.config import HarvestConfig
from harvest.loop import harvest
from harvest.repair import harvest_config
from harvest.text.encode import Marked, conversation, ids_of
from harvest.text.records import Bad
from store.errors import Damaged, Refused
from store.shards.reader import open_store
from tests.command import run
from tests.harvest.making import REPAIR, store_files
from tests.harvest.text.making import said
from tests.making import BOS, EOS, PAD, hash_of


def test_a_conversation_is_what_the_template_gives_and_its_own_tokens_are_marked(chatty):
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    found = conversation(said("a b", " turn<eos> "), tokenizer, 100)
    assert isinstance(found, Marked)
    theirs = tokenizer.apply_chat_template(said("a b", " turn<eos> "), return_dict=True)["input_ids"]
    assert [BOS, *found.ids, EOS, EOS] == theirs
    pieces = [(token, mark) for token, mark in zip(tokenizer.convert_ids_to_tokens(found.ids), found.template, strict=True)]
    of_template = [("<turn>", True), ("a", True), ("\n", True)]
    assert pieces == [
        *of_template,
        *[(character, False) for character in "a b"],
        ("<eos>", True),
        ("<turn>", True),
        ("b", True),
        ("\n", True),
        *[(character, False) for character in "turn"],
    ]


GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}{% endfor %}"
)
LLAMA_LIKE = (
    "{{ bos_token }}{% set first = messages[0].content | trim if messages[0].role == 'system' else '' %}"
    "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    "<turn>system\nToday: {{ strftime_now('%d %b %Y') }}\n{{ first }}"
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content | trim }}{% endfor %}"
)
QWEN_LIKE = (
    "{% if messages[0].role != 'system' %}<turn>system\nYou are helpful.{% endif %}"
    "{% for m in messages %}"
    "{% set text = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content %}"
    "<turn>{{ m.role }}\n{{ text }}\n{% endfor %}"
)
ASKED = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " yes "}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *ASKED]


def of_messages(tokenizer, template: str, messages: list[dict[str, str]]) -> tuple[str, str]:
    """The text of a conversation, and the part of it that the messages say."""
    tokenizer.chat_template = template
    found = conversation(messages, tokenizer, 100)
    assert isinstance(found, Marked), found
    tokens = tokenizer.convert_ids_to_tokens(found.ids)
    theirs = [token for token, of_template in zip(tokens, found.template, strict=True) if not of_template]
    return "".join(tokens), "".join(theirs)


def test_templates_of_the_shapes_of_gemma_llama_and_qwen(chatty):
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    assert of_messages(tokenizer, GEMMA_LIKE, ASKED) == ("<turn>user\nhi<turn>model\nyes", "hiyes")
    whole, theirs = of_messages(tokenizer, LLAMA_LIKE, SYSTEM)
    assert whole == "<turn>system\nToday: 26 Jul 2024\nBe brief.<turn>user\nhi<turn>assistant\nyes"
    assert theirs == "Be brief.hiyes"
    whole, theirs = of_messages(tokenizer, QWEN_LIKE, ASKED)
    assert whole == "<turn>system\nYou are helpful.<turn>user\nhi\n<turn>assistant\n yes \n"
    assert theirs == "hi yes "
    assert of_messages(tokenizer, QWEN_LIKE, SYSTEM)[1] == "Be brief.hi yes "
    thinking = [ASKED[0], {"role": "assistant", "content": "<think>so</think>yes"}]
    assert "changes its messages" in conversation(thinking, tokenizer, 100).reason


def test_a_system_message_that_the_template_refuses_is_named_with_the_cure(chatty, tmp_path):
    folder = shutil.copytree(chatty, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(GEMMA_LIKE)
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"m": each}) + "\n" for each in [ASKED] * 90 + [SYSTEM]))
    options = dict(model=str(folder), layer=1, dataset=str(path), chat="m", tokens=2048, context=16, device="cpu")
    reason = r"document 90 of \S+ cannot be read \(the chat template refuses it \(System role not supported\): put the "
    with pytest.raises(Damaged, match=reason + "system message's text before that of the first user message"):
        harvest(HarvestConfig(**options, store=tmp_path / "store"))


def test_messages_that_a_template_refuses_or_changes_are_bad_records(chatty):
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    found = conversation([{"role": "tool", "content": "x"}], tokenizer, 100)
    assert isinstance(found, Bad)
    assert "the chat template refuses it (no tools)" in found.reason
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    found = conversation(said("abc"), tokenizer, 100)
    assert isinstance(found, Bad)
    assert "changes its messages" in found.reason


def test_ids_lose_what_rows_have_of_their_own(tiny_models):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gemma2"])
    assert ids_of([BOS, EOS, 5, 6, EOS, BOS, 7, PAD, EOS, PAD], tokenizer, 98) == [5, 6, EOS, 7]
    for wrong in (98, -1):
        found = ids_of([5, wrong], tokenizer, 98)
        assert isinstance(found, Bad)
        assert f"token id {wrong} is not among the 98" in found.reason


@pytest.fixture
def ids(config, tmp_path) -> HarvestConfig:
    """The text of the other tests as ids."""
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    texts = [json.loads(line)["text"] for line in Path(config.dataset).read_text().splitlines()]
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    path = tmp_path / "ids.jsonl"
    path.write_text("".join(json.dumps({"ids": [BOS, *row, EOS]}) + "\n" for row in encoded))
    return replace(config, dataset=str(path), tokens_column="ids", store=tmp_path / "ids")


def test_a_column_of_ids_gives_the_rows_of_its_text(config, ids, monkeypatch, capsys):
    harvest(config)
    right = replace(ids, tokenizer_hash=hash_of(Path(config.model)))
    harvest(right)
    text, made = open_store(config.store), open_store(ids.store)
    for mine, theirs in zip(text.manifest.shards, made.manifest.shards, strict=True):
        for name in ("tokens", "token_index", "resid_mid", "mlp_out"):
            assert torch.equal(text.array(mine, name), made.array(theirs, name))
    assert made.manifest.recipe.tokens_column == "ids"
    assert text.fingerprint != made.fingerprint
    before = store_files(ids.store)
    (ids.store / "shard-00001.safetensors").unlink()
    assert run(monkeypatch, capsys, *REPAIR, str(ids.store))[0] == 0
    assert store_files(ids.store) == before


def test_ids_of_an_unknown_tokenizer_are_refused_with_the_hash_to_give(config, ids):
    known = hash_of(Path(config.model))
    with pytest.raises(Refused, match=f"may have been made with any, .* give --tokenizer-hash {known}"):
        harvest(ids)
    with pytest.raises(Refused, match=f"'ids' was made with 123, and the tokenizer of .* has hash {known}"):
        harvest(replace(ids, tokenizer_hash="123"))
    assert not ids.store.exists()


def test_an_id_beyond_the_vocabulary_is_refused_or_skipped(config, ids):
    path = Path(ids.dataset)
    path.write_text('{"ids": [5, 98]}\n' + path.read_text())
    right = replace(ids, tokenizer_hash=hash_of(Path(config.model)))
    with pytest.raises(Damaged, match=r"document 0 of .*token id 98 is not among the 98"):
        harvest(right)
    (manifest,) = harvest(replace(right, bad_records="skip"))
    assert manifest.shards[0].bad_records == 1


def test_template_tokens_are_marked_in_the_store_and_can_be_excluded(chat, tmp_path, monkeypatch, capsys):
    (manifest,) = harvest(chat)
    without = replace(chat, exclude_template=True, store=tmp_path / "without")
    (fewer,) = harvest(without)
    assert manifest.recipe.chat_template is not None
    assert manifest.recipe.exclude_template is None
    whole, store = open_store(chat.store), open_store(without.store)
    for shard, all_rows in zip(fewer.shards, manifest.shards, strict=True):
        tokens, marks = store.array(shard, "tokens").flatten(), store.array(shard, "template").flatten().bool()
        assert torch.equal(whole.array(all_rows, "template").flatten().bool(), marks)
        special = torch.isin(tokens, torch.tensor([BOS, EOS, PAD]))
        index = store.array(shard, "token_index").long()
        assert (~special & ~marks)[index[: shard.kept]].all()
        assert (special | marks)[index[shard.kept :]].all()
        assert shard.kept < all_rows.kept
        assert set(tokens[marks].tolist()) == {98, 99, 3 + ord("a") - 32, 3 + ord("b") - 32, EOS}
    before = store_files(without.store)
    (without.store / "shard-00001.safetensors").unlink()
    assert run(monkeypatch, capsys, *REPAIR, str(without.store))[0] == 0
    assert store_files(without.store) == before


def test_a_tokenizer_without_a_template_is_refused(chat, config):
    with pytest.raises(Refused, match="has no chat template"):
        harvest(replace(chat, model=config.model))
    assert not chat.store.exists()


def test_the_options_of_a_harvest_are_read_back_from_its_recipe(chat):
    asked = replace(chat, exclude_template=True, exclude_first=3, exclude_norm=5.0, bad_records="skip", documents="lines")
    harvest(asked)
    store = open_store(chat.store)
    from harvest.store_config import RepairConfig

    again = harvest_config(RepairConfig(store=chat.store, device="cpu"), store.manifest)
    assert again.recorded_when_set == asked.recorded_when_set


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_column": "a", "chat": "b"}, "give one of them"),
        ({"exclude_template": True}, "only --chat lays text out by a template"),
        ({"exclude_first": 128}, "no row would be kept"),
        ({"exclude_norm": 5.0, "layer": (0, 1)}, "harvest one layer at a time"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(Refused, match=message):
        HarvestConfig(**options)
