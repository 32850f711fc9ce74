"""Python literals that JSON can hold as well, read without evaluating anything.

    'text', "text", 7, -1.5, True, None, [1, {"k": None}], (1, 2); also JSON's true, false and null

Templates write nested values with `tojson` and others with Python's own `repr`; so both are read. What JSON cannot
hold (bytes, sets, complex numbers, infinities, keys that are no text) is no such literal. Only single strings are
given to `ast`: an expression of any size could exhaust its parser, and some make it warn.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

_DEEPEST = 100
_MOST_OCTAL = 0o377
_WORDS: dict[str, Any] = {
    "True": True, "False": False, "None": None, "true": True, "false": False, "null": None
}  # fmt: skip
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_NUMBER = re.compile(r"[-+]?[0-9.](?:[eE][-+]|[\w.])*", re.ASCII)
_STRING = re.compile(
    r"(?P<prefix>[rRuU]?)(?:"
    r"'''(?P<a>(?:[^'\\]|\\.|'(?!''))*+)'''"
    r'|"""(?P<b>(?:[^"\\]|\\.|"(?!""))*+)"""'
    r"|'(?P<c>(?:[^'\\]|\\.)*+)'"
    r'|"(?P<d>(?:[^"\\]|\\.)*+)")',
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)|[\n\r\0\"]", re.DOTALL)
_KNOWN_ESCAPES = frozenset("\n\\'\"abfnrtvxuUN")
_RAW = {"\n": "\\n", "\r": "\\r", "\0": "\\x00", '"': '\\"'}


class NotLiteral(ValueError):
    """The text is not in the grammar."""


class Literals:
    """Reads literals from a text, one behind the other; `at` is where the next one begins."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.text = text
        self.at = at

    def value(self, depth: int = 0) -> Any:
        """The value that begins here.

        Raises:
            NotLiteral: None does.
        """
        if depth > _DEEPEST:
            raise NotLiteral(f"nested more than {_DEEPEST} deep")
        self.skip_space()
        if self.takes("{"):
            return self._mapping(depth)
        if self.takes("["):
            return self._items("]", depth)
        if self.takes("("):
            return self._parenthesis(depth)
        if _STRING.match(self.text, self.at) is not None:
            return self._strings()
        return self._scalar()

    def takes(self, text: str) -> bool:
        """Step over `text` where it stands here."""
        if not self.text.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def skip_space(self) -> None:
        """Step over white space."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found is not None else self.at

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._ends("}", is_first=not found):
            key = self.value(depth + 1)
            self.skip_space()
            if not isinstance(key, str) or not self.takes(":"):
                raise NotLiteral(f"no key with a value at {self.at}")
            found[key] = self.value(depth + 1)
        return found

    def _items(self, closer: str, depth: int) -> list[Any]:
        found: list[Any] = []
        while not self._ends(closer, is_first=not found):
            found.append(self.value(depth + 1))
        return found

    def _parenthesis(self, depth: int) -> Any:
        start = self.at
        found = self._items(")", depth)
        # One value in parentheses is that value; a comma makes a row of it.
        return found if len(found) != 1 or self.text[start : self.at - 1].rstrip().endswith(",") else found[0]

    def _ends(self, closer: str, *, is_first: bool) -> bool:
        self.skip_space()
        comma = not is_first and self.takes(",")
        self.skip_space()
        if self.takes(closer):
            return True
        if not is_first and not comma:
            raise NotLiteral(f"no comma at {self.at}")
        return False

    def _strings(self) -> str:
        parts: list[str] = []
        while (match := _STRING.match(self.text, self.at)) is not None:
            body = next(group for group in match.group("a", "b", "c", "d") if group is not None)
            parts.append(_unescaped(body, is_raw=match["prefix"] in ("r", "R") and match["prefix"] != ""))
            self.at = match.end()
            self.skip_space()
        return "".join(parts)

    def _scalar(self) -> Any:
        word = _WORD.match(self.text, self.at)
        if word is not None and word.group() in _WORDS:
            self.at = word.end()
            return _WORDS[word.group()]
        number = _NUMBER.match(self.text, self.at)
        if number is None:
            raise NotLiteral(f"no value at {self.at}")
        try:
            value = _number(number.group())
            str(value)  # JSON writes decimals, and Python refuses to write a whole number of too many of them
        except ValueError as error:
            raise NotLiteral(f"no number at {self.at}") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise NotLiteral(f"a number that JSON does not have at {self.at}")
        self.at = number.end()
        return value


def _number(text: str) -> int | float:
    is_float = any(char in text for char in ".eE") and "x" not in text.lower()
    return float(text) if is_float else int(text, 0)


def _unescaped(body: str, *, is_raw: bool) -> str:
    if is_raw or ("\\" not in body):
        return body
    quoted = '"' + _ESCAPE.sub(_escape_for_python, body) + '"'
    try:
        text = ast.literal_eval(quoted)
    except (ValueError, SyntaxError) as error:
        raise NotLiteral("an escape that Python does not know") from error
    return str(text)


def _escape_for_python(match: re.Match[str]) -> str:
    """What Python reads without a warning, and as it is meant: a line break in a string is one."""
    escaped = match.group(1)
    if escaped is None:
        return _RAW[match.group()]
    if escaped[0] in "01234567":
        if int(escaped, 8) > _MOST_OCTAL:
            raise NotLiteral("an octal escape above \\377")
        return match.group()
    return match.group() if escaped in _KNOWN_ESCAPES else "\\" + match.group()


def whole_literal(text: str) -> Any:
    """The one literal that `text` is.

    Raises:
        NotLiteral: It is none, or there is more.
    """
    reader = Literals(text)
    value = reader.value()
    reader.skip_space()
    if reader.at != len(text):
        raise NotLiteral(f"more behind the value at {reader.at}")
    return value
