"""Conversations, and a chat template for them."""

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<turn>{{ m.role }}\n{{ m.content | trim }}<eos>{% endfor %}"
)


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": "ab"[number % 2], "content": content} for number, content in enumerate(contents)]
