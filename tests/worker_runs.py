"""Commands that run workers, which tests wait for and kill."""

import subprocess
import sys
import time

import psutil

SERVER = "groupmorph_monai.apps.cohort.server"
PATIENCE_S = 900


def start(log, *words):
    with open(log, "a", encoding="utf-8") as stream:
        return subprocess.Popen([sys.executable, "-m", *words], stdout=stream, stderr=stream)


def wait_for(condition, process, output):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        log = open(f"{output}.log", encoding="utf-8").read()[-2000:]
        assert process.poll() is None and time.monotonic() < deadline, log
        time.sleep(0.05)


def worker_of(process):
    """A process below ``process`` that has a server, and so is a worker."""
    below = psutil.Process(process.pid).children(recursive=True)
    return next(
        child.parent() for child in below if SERVER in child.cmdline() and SERVER not in child.parent().cmdline()
    )


def below(process):
    return psutil.Process(process.pid).children(recursive=True)
