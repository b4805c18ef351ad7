"""What is said of a record that holds no conversation: what was found, and how it can be read."""

import pytest

from harvest.text.records import Bad, document_in

PARTS = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
CALLS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": []}]


@pytest.mark.parametrize(
    ("value", "what", "cure"),
    [
        (
            [{"from": "human", "value": "hi"}],
            "a list of objects with from, value",
            "these are ShareGPT's: rename from",
        ),
        (PARTS, "a list of objects with role, content", "role and content must be text: join the parts of a content"),
        (CALLS, "a list of objects with role, content", "role and content must be text: join the parts of a content"),
        ([{"speaker": "a", "text": "hi"}], "a list of objects with speaker, text", "each message needs the text role and"),
        ([], "an empty list", "--bad-records skip leaves such records out"),
        ([1.5], "a list that begins with a number (1.5)", "choose another --chat"),
        ("a text", "text", "read it with --text-column m"),
    ],
)
def test_a_value_that_is_no_conversation_is_named_with_its_cure(value, what, cure):
    found = document_in(value, "m", "chat")
    assert isinstance(found, Bad)
    assert found.reason == f"its column 'm' holds {what} where messages are wanted"
    assert found.cure.startswith(cure)


def test_messages_with_more_keys_are_a_conversation():
    messages = [{"role": "user", "content": "hi", "name": "me"}]
    assert document_in(messages, "m", "chat") == messages
