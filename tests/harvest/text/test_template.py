"""Chat templates from a file: for tokenizers that have none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import harvest.loop
from harvest.config import HarvestConfig
from harvest.loop import harvest as harvested
from harvest.opening import open_all
from harvest.preflight import refuse_what_is_known, visit
from harvest.ranks import Rank
from harvest.text.encode import Marked, conversation, lost_markers, parsed_template
from harvest.text.records import Bad
from store.errors import Refused
from tests.command import run
from tests.harvest.making import REPAIR, store_files
from tests.harvest.text.making import TEMPLATE

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}\n"
)
LLAMA_3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
"""
GEMMA = """{{ bos_token }}{% for message in messages %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{% generation %}{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endgeneration %}
{% endfor %}"""
ASKED = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def bare(chat, chatty, tmp_path) -> HarvestConfig:
    """The conversations for the model whose tokenizer has lost its template, which lies in a file."""
    folder = shutil.copytree(chatty, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE)
    return replace(chat, model=str(folder), chat_template=path, store=tmp_path / "with-a-file")


@pytest.mark.parametrize(
    ("template", "markers", "whole"),
    [
        (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"),
        (
            LLAMA_3,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>",
        ),
        (
            GEMMA,
            ("<start_of_turn>", "<end_of_turn>"),
            "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n",
        ),
    ],
)
def test_templates_of_public_shapes_from_a_file(tiny_models, tmp_path, template, markers, whole):
    path = tmp_path / "template.jinja"
    path.write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gemma2"])
    tokenizer.add_tokens([*markers, "\n"], special_tokens=True)
    tokenizer.chat_template = parsed_template(path)
    found = conversation(ASKED, tokenizer, 200)
    assert isinstance(found, Marked)
    tokens = tokenizer.convert_ids_to_tokens(found.ids)
    assert "".join(tokens) == whole
    assert set(markers) <= set(tokens)
    theirs = [token for token, of_template in zip(tokens, found.template, strict=True) if not of_template]
    assert theirs == list("hiyes")


def test_markers_that_the_tokenizer_does_not_know_are_said(bare, caplog):
    """They are read as characters, which no instruction-tuned model was trained on."""
    assert bare.chat_template is not None
    bare.chat_template.write_text(CHATML)
    open_all(bare, Rank())
    [said] = [record.message for record in caplog.records]
    assert said.startswith("the chat template writes <|im_start|>, <|im_end|>, and the tokenizer has no such tokens")
    caplog.clear()
    bare.chat_template.write_text(TEMPLATE)
    open_all(bare, Rank())
    assert caplog.records == []


def test_a_marker_that_is_the_bos_token_is_said(chatty):
    """SmolLM2's <|im_start|> is one; a BOS before the whole conversation is none."""
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    assert lost_markers(tokenizer) == []
    tokenizer.bos_token = "<turn>"
    [said] = lost_markers(tokenizer)
    assert said.startswith("the chat template writes <turn> at each turn, which is the tokenizer's BOS: rows have BOS at")


def test_a_template_that_needs_tools_does_not_blame_the_system_message(tiny_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["gemma2"])
    tokenizer.chat_template = "{% for tool in tools %}{{ tool }}{% endfor %}{{ messages[0].content }}"
    found = conversation([{"role": "system", "content": "x"}], tokenizer, 98)
    assert isinstance(found, Bad)
    assert found.cure == "--chat-template FILE gives another template"


def test_a_template_from_a_file_does_what_the_tokenizer_s_own_does(chat, bare, monkeypatch, capsys):
    (own,) = harvested(chat)
    (given,) = harvested(bare)
    assert given.recipe.chat_template == own.recipe.chat_template
    files, theirs = store_files(bare.store), store_files(chat.store)
    shards = [name for name in files if name.startswith("shard-")]
    assert len(shards) == 3
    assert all(files[name] == theirs[name] for name in shards)
    (bare.store / shards[1]).unlink()
    code, said = run(monkeypatch, capsys, *REPAIR, str(bare.store))
    assert code == 1
    assert "has no chat template, which --chat needs; give a Jinja file with --chat-template" in said
    other = bare.store.parent / "other.jinja"
    other.write_text(CHATML)
    code, said = run(monkeypatch, capsys, *REPAIR, str(bare.store), "--chat-template", str(other))
    assert code == 1
    assert said.strip().endswith("give the template of the harvest with --chat-template")
    assert run(monkeypatch, capsys, *REPAIR, str(bare.store), "--chat-template", str(bare.chat_template))[0] == 0
    assert store_files(bare.store) == files


def test_a_store_made_with_another_template_is_refused_before_the_model_is_loaded(bare, monkeypatch):
    harvested(bare)
    assert visit(bare).finished is not None
    assert bare.chat_template is not None
    bare.chat_template.write_text(TEMPLATE + "\n")
    with pytest.raises(Refused, match=r"holds another harvest .*: chat_template: '\w{32}' != '\w{32}'"):
        visit(bare)


def test_a_tokenizer_without_a_template_names_the_option(bare):
    with pytest.raises(Refused, match="has no chat template, which --chat needs; give a Jinja file with --chat-template"):
        harvested(replace(bare, chat_template=None))
    assert not bare.store.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; give the Jinja file of a chat template"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        ("{{ 'ä' }}".encode("latin-1"), "is not UTF-8 text"),
        (b"user: {content}", "holds neither {{ nor {%, so it is no Jinja"),
        (json.dumps({"chat_template": CHATML}).encode(), "is JSON; write the text of its chat_template into a file"),
        (json.dumps(CHATML).encode(), "is JSON"),
    ],
)
def test_a_file_that_is_no_template_is_refused_before_any_library_is_loaded(bare, tmp_path, content, message):
    path = tmp_path / "given.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused) as refused:
        refuse_what_is_known(replace(bare, chat_template=path))
    assert str(refused.value).startswith(f"chat_template {path} {message}")
    assert not bare.store.exists()


def test_a_folder_is_no_template(bare, tmp_path):
    with pytest.raises(Refused, match="is a folder; give the Jinja file"):
        refuse_what_is_known(replace(bare, chat_template=tmp_path))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}\n{{ m.content }", "line 2: "),
        ("{% for m in messages %}{{ m.content }}", "line 1: Unexpected end of template"),
        ("{{ messages | nonsense }}", "line 1: No filter named 'nonsense'"),
    ],
)
def test_what_jinja_cannot_parse_is_refused_with_its_line_before_the_model(bare, monkeypatch, template, message):
    assert bare.chat_template is not None
    bare.chat_template.write_text(template)
    monkeypatch.setattr(harvest.opening, "load_model", lambda *args, **options: pytest.fail("the model is loaded"))
    with pytest.raises(Refused) as refused:
        harvested(bare)
    assert str(refused.value).startswith(f"chat_template {bare.chat_template} is no valid Jinja: {message}")
    assert "\n" not in str(refused.value)


def test_a_template_without_conversations_is_refused():
    with pytest.raises(Refused, match="chat_template is set, but only --chat lays text out by a template"):
        HarvestConfig(chat_template=Path("x.jinja"))
