"""Headless Chromium with a mouse and a keyboard, driven by Chromium's own debugging protocol over a pipe."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# Chromium reads commands from file descriptor 3 and writes answers to 4.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"Tab": 9, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Window:
    """A window of the browser.

    Args:
        profile: folder for Chromium's files.
        size: width and height of the window in pixels.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 1400)):
        theirs, self.commands = _pipe()
        self.answers, to_us = _pipe(reading_here=True)
        command = [sys.executable, "-c", START, str(theirs), str(to_us), PROGRAM, *FLAGS, "--remote-debugging-pipe"]
        command += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(theirs, to_us), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(to_us)
        self.number, self.session = 0, {}
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}

    def open(self, file: Path) -> None:
        self.call("Page.navigate", url=file.as_uri())

    def call(self, method: str, **params: object) -> Any:
        """Call a method of the protocol and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while (answer := json.loads(b"".join(iter(lambda: self.answers.read(1), b"\0")))).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, script: str) -> Any:
        """Evaluate JavaScript, await its promise, and return the value."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        self.run(f"(async () => {{ while (!({condition})) await new Promise((f) => setTimeout(f, 50)); }})()")

    def place(self, name: str, right: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """Scroll an element into view and return a place in it, from 0 to 1 to the right and down, in the window."""
        box = self.run(
            f"(() => {{ const e = document.getElementById({name!r}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        return box[0] + right * box[2], box[1] + down * box[3]

    def drag(self, places: Sequence[tuple[float, float]]) -> None:
        """Press the left button at the first place, move through the others, and release it at the last."""
        self._mouse("mousePressed", places[0], buttons=1)
        for place in places[1:]:
            self._mouse("mouseMoved", place, buttons=1)
        self._mouse("mouseReleased", places[-1], buttons=0)

    def click(self, name: str, right: float = 0.5, down: float = 0.5) -> None:
        self.drag([self.place(name, right, down)])

    def _mouse(self, kind: str, place: tuple[float, float], buttons: int) -> None:
        button = {"button": "left", "clickCount": 1, "buttons": buttons}
        self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], **button)

    def press(self, *keys: str) -> None:
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            code = KEYS.get(key, ord(key[0].upper()))
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(60)
        self.commands.close()
        self.answers.close()


def _pipe(reading_here: bool = False) -> tuple[Any, Any]:
    """Make a pipe: a file of this process for our end, and a descriptor above 9 for Chromium's."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    reading, writing = moved
    return (os.fdopen(reading, "rb"), writing) if reading_here else (reading, os.fdopen(writing, "wb"))
