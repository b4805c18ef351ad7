"""What is said of a record that holds no conversation: what was found, and how it can be read."""

import pytest

from harvest.text.records import Bad, document_in, lacking

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


@pytest.mark.parametrize(
    ("row", "found", "cure"),
    [
        ({"prompt": "a", "body": "b"}, "['body', 'prompt']", "choose with --text-column"),
        (
            {"version": 1, "data": [{"text": "a"}]},
            "['data', 'version']",
            "if 'data' holds the documents, write",
        ),
        ({"messages": []}, "['messages']", "for chats give --chat messages, else choose with --text-column"),
        (
            {"It was a dark night. " * 20: "x"},
            "['It was a dark night. It was a dark night...']",
            "if the first line is",
        ),
        (["a", "b"], "['a', 'b']", "choose with --text-column"),
    ],
)
def test_a_record_without_the_column_names_what_it_has_and_the_cure(row, found, cure):
    bad = lacking("text", row)
    assert bad.reason == f"it has no text column 'text'; it has {found}"
    assert bad.cure.startswith(cure)


def test_ids_that_are_not_all_whole_numbers_are_named():
    found = document_in([5, 6, 7.0], "ids", "tokens")
    assert isinstance(found, Bad)
    assert "holds a list that begins with a number (5) and holds a number (7.0) where token ids are wanted" in found.reason
