"""Kinds of settings: each checks values and describes the valid ones."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Kind(ABC):
    """The values that a setting may take. ``str`` describes them."""

    @abstractmethod
    def accepts(self, value: object) -> bool:
        """Check whether a setting may have this value."""


@dataclass(frozen=True)
class Number(Kind):
    """A finite number from ``least`` (exclusive if ``above``) to ``most``."""

    least: float
    most: float
    above: bool = False

    def accepts(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -math.inf < value < math.inf:
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        return f"a number {'above' if self.above else 'from'} {self.least:.6g} to {self.most:.6g}"


@dataclass(frozen=True)
class Whole(Number):
    """A whole number from ``least`` to ``most``."""

    def accepts(self, value: object) -> bool:
        return isinstance(value, int) and super().accepts(value)

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text(Kind):
    """A name, a pattern or a path."""

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and bool(value)

    def __str__(self) -> str:
        return "text"


class Choice(Kind):
    """One of a few words, or a value that ``other`` accepts."""

    def __init__(self, *words: str, other: Kind | None = None):
        self.words, self.other = words, other

    def accepts(self, value: object) -> bool:
        return value in self.words if isinstance(value, str) else self.other is not None and self.other.accepts(value)

    def __str__(self) -> str:
        return " or ".join([", ".join(self.words), *([str(self.other)] if self.other else [])])


@dataclass(frozen=True)
class List(Kind):
    """One or more values of a kind, or exactly ``length`` of them."""

    of: Kind
    length: int | None = None

    def accepts(self, value: object) -> bool:
        if not isinstance(value, list) or not value or self.length not in (None, len(value)):
            return False
        return all(self.of.accepts(v) for v in value)

    def __str__(self) -> str:
        words = str(self.of).removeprefix("a ").replace("number", "numbers", 1)
        return f"a list of {self.length or 'one or more'} {words}"


class OrNone(Kind):
    """A value that one of ``kinds`` accepts, or null."""

    def __init__(self, *kinds: Kind):
        self.kinds = kinds

    def accepts(self, value: object) -> bool:
        return value is None or any(kind.accepts(value) for kind in self.kinds)

    def __str__(self) -> str:
        return " or ".join([*map(str, self.kinds), "null"])
