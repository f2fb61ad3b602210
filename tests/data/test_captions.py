"""Captions of any size, type and encoding."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scott.data.captions import MAX_CAPTIONS, MAX_CHARACTERS, read_captions, read_columns
from scott.data.records import Skip

GOOD = {
    "a text": (" a  cat\n on\ta mat ", ["a cat on a mat"]),
    "bytes with a mark": ("\ufeffein Löwe".encode(), ["ein Löwe"]),
    "several, one of them empty": (["a cat", "", None, b"a dog"], ["a cat", "a dog"]),
    "a null byte": ("a\0cat", ["a cat"]),
    "as long as is allowed": ("a" * MAX_CHARACTERS, ["a" * MAX_CHARACTERS]),
}
BAD = {
    "none": (None, "empty-caption"),
    "empty": ("", "empty-caption"),
    "white space": (" \n\u3000", "empty-caption"),
    "no captions": ([], "empty-caption"),
    "empty ones": (["", None], "empty-caption"),
    "100 kB": ("a" * 100_000, "caption-too-long"),
    "2 MB of bytes": (b"a" * 2_000_000, "caption-too-long"),
    "Latin-1": ("naïve".encode("latin-1"), "caption-not-utf8"),
    "half a surrogate pair": ("\ud800", "caption-not-utf8"),
    "a number": (7, "caption-not-text"),
    "missing, as pandas writes it": (float("nan"), "caption-not-text"),
    "an object": ({"en": "a cat"}, "caption-not-text"),
    "lists in a list": ([["a cat"]], "caption-not-text"),
    "too many": (["a"] * (MAX_CAPTIONS + 1), "too-many-captions"),
}


@pytest.mark.parametrize(("value", "captions"), GOOD.values(), ids=GOOD.keys())
def test_what_a_caption_becomes(value, captions):
    assert read_captions(value) == captions


@pytest.mark.parametrize(("value", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_caption_is_skipped_with_its_reason(value, reason):
    with pytest.raises(Skip) as skip:
        read_captions(value)
    assert skip.value.reason == reason


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
)


@given(ANYTHING)
def test_anything_is_captions_or_a_skip(value):
    try:
        captions = read_captions(value)
    except Skip:
        return
    assert captions
    for caption in captions:
        assert caption == " ".join(caption.split())
        assert 0 < len(caption) <= MAX_CHARACTERS
        caption.encode()


@given(st.binary() | st.builds(lambda value: json.dumps(value).encode(), st.dictionaries(st.text(), st.text())))
def test_any_bytes_are_columns_or_a_skip(data):
    with contextlib.suppress(Skip):
        assert isinstance(read_columns(data), dict)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 50_000, b"[]", b"7", b"{", b"9" * 5000, b"\xff"])
def test_json_that_is_no_object(data):
    with pytest.raises(Skip, match="metadata-not-json"):
        read_columns(data)
