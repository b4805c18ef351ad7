"""The file of --chat-template, as far as it can be judged without the libraries of models."""

import json
from pathlib import Path

import xxhash

from store.errors import Refused


def read_template(path: Path) -> str:
    """The template in a file. Refused when the file is missing, empty, not UTF-8, JSON, or no Jinja."""
    give = "give the Jinja file of a chat template, such as a model's chat_template.jinja"
    if not path.is_file():
        raise Refused(f"chat_template {path} {'is a folder' if path.is_dir() else 'does not exist'}; {give}")
    try:
        template = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"chat_template {path} is not UTF-8 text ({error}); {give}") from None
    if not template.strip():
        raise Refused(f"chat_template {path} is empty; {give}")
    if _is_json(template):
        raise Refused(
            f"chat_template {path} is JSON; write the text of its chat_template into a file of its own, and give that"
        )
    if "{{" not in template and "{%" not in template:
        raise Refused(f"chat_template {path} holds neither {{{{ nor {{%, so it is no Jinja; {give}")
    return template


def hash_of_template(template: str) -> str:
    """What a manifest calls chat_template."""
    return xxhash.xxh3_128_hexdigest(template.encode())


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | str)
    except ValueError:
        return False
