"""Helpers of the fuzz tests: any input gives a result or an InputError, within seconds, and writes nothing."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from groupmorph_monai.errors import InputError

# The same examples in each run; new ones with pytest --hypothesis-profile=default.
_CHECKS = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
QUICK = settings(max_examples=8, phases=[Phase.generate], **_CHECKS)
LONG = settings(max_examples=300, **_CHECKS)
LENGTHS = pytest.mark.parametrize(
    "length", [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]
)

_LIMIT_S = 60
_ODD_NUMBERS = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 1e38, -1e38, 65535.0)
odd_floats = st.sampled_from(_ODD_NUMBERS) | st.floats(width=32)
odd_text = st.text(max_size=40) | st.sampled_from(
    ["", "nan", "inf", "1e999", "-1", "0", "1,2", "²", "\0", "$(ls)", "@a"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw, whole: bytes, header: int) -> bytes:
    """Change some bytes of a file, most of them among the first ``header``, and possibly truncate or extend it."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 6))):
        end = draw(st.sampled_from([header, header, header, len(content)]))
        content[draw(st.integers(0, end - 1))] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    if draw(st.integers(0, 3)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content) + draw(st.sampled_from([b"", b"", b"", b"\0" * 20, b"tail"]))


def check_examples(length: settings, strategy: st.SearchStrategy, check: Callable[[object], object]) -> None:
    """Call ``check`` with examples of a strategy, as many as QUICK or LONG says."""
    length(given(strategy)(check))()


class TooLong(BaseException):
    """No result in time; not an `Exception`, which readers of damaged files catch."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number, frame):
        raise TooLong(f"no result after {_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)  # of the whole test, see pytest-timeout
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s)
        signal.signal(signal.SIGALRM, before)


def answer(folder: Path, ask: Callable[[], object]) -> object:
    """Return the result of ``ask``, or the InputError that it raises.

    Other exceptions, error messages of several lines and changes in ``folder`` fail the test.
    """
    before = _content(folder)
    try:
        with _time_limit():
            result = ask()
    except InputError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1, repr(str(error))
        result = error
    assert _content(folder) == before
    return result


def _content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
