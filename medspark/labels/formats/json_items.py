"""A JSON document one item at a time: a million cells of a slide are a gigabyte of text, and ten of Python objects if they are loaded whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from medspark.errors import Rejected
from medspark.labels.regions import Context

CHUNK_CHARS = 1 << 20  # read at once; one item may be longer
TOKEN_CHARS = 32  # a complaint this near to the end of what was read is of a token that goes on: a number, a literal, an escape

WATCH_EVERY = 50_000  # items: some seconds

_SPACE = " \t\n\r"
_ENDS = tuple(_SPACE + ",]}:")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Outline:
    """A document without the items of its arrays.

    rest : as `items` gives it at the end
    types : what the items call their type; None among them for one that does not
    """

    rest: Any
    types: frozenset[str | None]


def outline(path: str, context: Context, *keys: str) -> Outline:
    """What the document is, every character of it looked at; raises as `parts`."""
    types: set[str | None] = set()
    rest: Any = None
    for is_item, value in parts(path, context, *keys):
        if is_item:
            said = value.get("type") if isinstance(value, dict) else None
            types.add(said if isinstance(said, str) else None)
        else:
            rest = value
    return Outline(rest, frozenset(types))


def parts(path: str, context: Context, *keys: str) -> Iterator[tuple[bool, Any]]:
    """`items` of a file; raises Rejected(LABEL_FORMAT, TOO_LARGE)."""
    context.check_size(os.path.getsize(path))
    context.watch("json")
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, part in enumerate(items(stream, *keys), start=1):
                if number % WATCH_EVERY == 0:
                    context.watch(f"item {number}")
                yield part
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Rejected("LABEL_FORMAT", "not valid JSON") from None


def items(stream: IO[str], *keys: str) -> Iterator[tuple[bool, Any]]:
    """(True, item) of the document's own array, or of the arrays that its object holds under ``keys``; last (False, the rest).

    The rest is the object without those arrays' items (an empty list stands for them), None where the document is an array, or else the
    document itself. Raises ValueError and RecursionError for what is no JSON.
    """
    text = _Text(stream)
    first = text.peek()
    rest: Any = None
    if first == "[":
        yield from ((True, item) for item in text.array())
    elif first == "{":
        rest = {}
        for name in text.members():
            if name in keys and text.peek() == "[":
                rest[name] = []
                yield from ((True, item) for item in text.array())
            else:
                rest[name] = text.value()
    else:
        rest = text.value()
    if text.peek():
        raise ValueError("text behind the document")
    yield False, rest


class _Text:
    """Final. The part of the text that is in memory and the place reached in it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._part, self._at, self._ended = stream, "", 0, False

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self._at < len(self._part):
                if self._part[self._at] not in _SPACE:
                    return self._part[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def take(self, wanted: str) -> str:
        found = self.peek()
        if not found or found not in wanted:
            raise ValueError(f"expected one of {wanted}")
        self._at += 1
        return found

    def array(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The names of an object's members; whoever takes one reads its value before the next."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            name = self.value()
            if not isinstance(name, str):
                raise ValueError("a member's name is no string")
            self.take(":")
            yield name
            if self.take(",}") == "}":
                return

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._part, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._part) - TOKEN_CHARS or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    raise
            else:
                # A number may go on behind what was read: "-2.5" of "-2.5e-7", and the decoder stops there as well if that ends in "e".
                if self._ended or end < len(self._part) - TOKEN_CHARS or self._part[end : end + 1] in _ENDS:
                    self._at = end
                    return found
            self._more()

    def _more(self) -> None:
        kept = self._part[self._at :]
        more = self._stream.read(max(CHUNK_CHARS, len(kept)))  # as much again: a long item is tried a few times, not a thousand
        self._part, self._at, self._ended = kept + more, 0, not more
