"""Documents -> token ids: text, chat records through a chat template, columns of ids made elsewhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from harvest.text.records import Bad
from harvest.text.template import hash_of_template, read_template
from store.errors import Refused

TODAY = datetime(2024, 7, 26)
"""Llama 3's templates fall back to this day: the clock's would give other tokens when a harvest is continued tomorrow."""

MARK = "\ue000{number}\ue001"
"""Stands for the content of a message while a template is looked at: characters that no text should have."""

MARKER = re.compile(r"<[|\uff5c][^<>\s]+[|\uff5c]>|<\w+_of_\w+>")
"""What a template writes where a turn begins or ends. DeepSeek's bars are full-width."""
OTHER_TEMPLATE = "--chat-template FILE gives another template"


@dataclass(frozen=True)
class Marked:
    """Token ids, and which of them a chat template put around the messages."""

    ids: list[int]
    template: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


def ids_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, n_ids: int) -> list[int] | Bad:
    """A document's ids as rows hold them: no BOS, no PAD, no EOS at either end. Bad for one that is not below n_ids."""
    marked = Marked(list(ids), [False] * len(ids))
    found = _without_specials(marked, tokenizer, n_ids)
    return found if isinstance(found, Bad) else found.ids


def conversation(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, n_ids: int) -> Marked | Bad:
    """A chat record as the tokenizer's template lays it out, with markers as the special tokens that they name.

    Bad where the template refuses the messages, or does not repeat what they say.
    """
    try:
        rendered = _rendered(messages, tokenizer)
        marked = [message | {"content": MARK.format(number=number)} for number, message in enumerate(messages)]
        skeleton = _rendered(marked, tokenizer)
    except (TemplateError, ValueError, TypeError) as error:
        systemic = any(message["role"] == "system" for message in messages) and type(error) is TemplateError
        cure = "put the system message's text before that of the first user message" if systemic else OTHER_TEMPLATE
        return Bad(f"the chat template refuses it ({error})", cure)
    spans = _spans([message["content"] for message in messages], rendered, skeleton)
    if spans is None:
        return Bad("the chat template changes its messages, so that its tokens cannot be told from theirs", OTHER_TEMPLATE)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    of_template = [True] * len(rendered)
    for start, end in spans:
        of_template[start:end] = [False] * (end - start)
    template = [all(of_template[start:end]) for start, end in encoded["offset_mapping"]]
    return _without_specials(Marked(list(encoded["input_ids"]), template), tokenizer, n_ids)


def _rendered(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """The conversation as text, the same on any day: a template that writes today's date is given TODAY."""
    with mock.patch.object(chat_template_utils, "datetime", SimpleNamespace(now=lambda: TODAY)):  # it takes no other clock
        return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _spans(contents: list[str], rendered: str, skeleton: str) -> list[tuple[int, int]] | None:
    """Where each message's content stands in the rendered template; None where it does not, whole or stripped."""
    spans: list[tuple[int, int]] = []
    at = 0
    for number, content in enumerate(contents):
        before, mark, skeleton = skeleton.partition(MARK.format(number=number))
        start = at + len(before)
        shown = content if rendered.startswith(content, start) and rendered.startswith(before, at) else content.strip()
        if not mark or not rendered.startswith(before + shown, at):
            return None
        at = start + len(shown)
        spans.append((start, at))
    return spans if rendered[at:] == skeleton else None


def _without_specials(marked: Marked, tokenizer: PreTrainedTokenizerBase, n_ids: int) -> Marked | Bad:
    """The tokens without BOS and PAD, and without EOS at either end: rows begin with BOS, and EOS ends each document."""
    wrong = next((index for index in marked.ids if not 0 <= index < n_ids), None)
    if wrong is not None:
        return Bad(f"token id {wrong} is not among the {n_ids:,} of the tokenizer and the model")
    eos = tokenizer.eos_token_id
    out = [index for index in (tokenizer.bos_token_id, tokenizer.pad_token_id) if index != eos]
    kept = [pair for pair in zip(marked.ids, marked.template, strict=True) if pair[0] not in out]
    while kept and kept[-1][0] == eos:
        kept.pop()
    first = next((number for number, (index, _) in enumerate(kept) if index != eos), 0)
    kept = kept[first:]
    return Marked([index for index, _ in kept], [of_template for _, of_template in kept])


def parsed_template(path: Path) -> str:
    """The template in a file. Refused as `read_template` says, and where Jinja cannot parse it."""
    template = read_template(path)
    try:
        chat_template_utils.render_jinja_template([], chat_template=template)  # of no conversation: it is parsed alone
    except TemplateSyntaxError as error:
        raise Refused(
            f"chat_template {path} is no valid Jinja: line {error.lineno}: {error.message}; mend it, or give another"
        ) from None
    return template


def lost_markers(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What becomes of markers of the tokenizer's template that no row holds as tokens, a sentence each."""
    try:
        rendered = _rendered([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], tokenizer)
    except (TemplateError, ValueError, TypeError):
        return []  # a template with demands of its own; what it refuses is said record by record
    known = tokenizer.get_vocab()
    unknown = [marker for marker in dict.fromkeys(MARKER.findall(rendered)) if marker not in known]
    bos = str(tokenizer.bos_token or "")
    found = []
    if unknown:
        found.append(
            f"the chat template writes {', '.join(unknown)}, and the tokenizer has no such tokens: they are read as "
            "characters; give --chat-template a template with the markers that the model was trained with"
        )
    if bos and bos != tokenizer.eos_token and bos in rendered.removeprefix(bos):
        found.append(
            f"the chat template writes {bos} at each turn, which is the tokenizer's BOS: rows have BOS at their beginning "
            "alone, so that turns lose it"
        )
    return found


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a manifest calls chat_template. Refused when the tokenizer has none."""
    template = tokenizer.chat_template
    if not template:
        raise Refused(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which --chat needs; give a Jinja file with "
            "--chat-template, such as the chat_template.jinja of the model's instruction-tuned sister"
        )
    return hash_of_template(str(template))
