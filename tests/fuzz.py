"""What fuzz tests share: every input ends in a result or an InputError, soon, and nothing is written."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from groupmorph_monai.errors import InputError

# In the suite always the same few examples; under `slow` other ones each time.
_CHECKS = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
QUICK = settings(max_examples=25, derandomize=True, phases=[Phase.generate], **_CHECKS)
LONG = settings(max_examples=1500, **_CHECKS)

_PATIENCE_S = 30
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
    """A file with some bytes changed, most of them within the first ``header``, and perhaps cut or with a tail."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 6))):
        end = draw(st.sampled_from([header, header, header, len(content)]))
        content[draw(st.integers(0, end - 1))] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    if draw(st.integers(0, 3)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content) + draw(st.sampled_from([b"", b"", b"", b"\0" * 20, b"tail"]))


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def stop(number, frame):
        raise TimeoutError(f"no answer after {_PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(folder: Path, ask: Callable[[], object]) -> object:
    """What ``ask`` returns, or the InputError that it raises in one line; anything else it raises fails the test, as
    does a change in ``folder``."""
    before = _content(folder)
    try:
        with _patience():
            result = ask()
    except InputError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1, repr(str(error))
        result = error
    assert _content(folder) == before
    return result


def _content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
