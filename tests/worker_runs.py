"""Commands that run workers, which tests wait for and kill."""

import subprocess
import sys
import time
from contextlib import suppress

import psutil

SERVER = "groupmorph_monai.apps.cohort.server"
PATIENCE_S = 900


def start(log, *words):
    with open(log, "a", encoding="utf-8") as stream:
        return subprocess.Popen([sys.executable, "-m", *words], stdout=stream, stderr=stream)


def wait_for(condition, process, output):
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        log = open(f"{output}.log", encoding="utf-8").read()[-2000:]
        assert process.poll() is None and time.monotonic() < deadline, log
        time.sleep(0.05)
    return value


def workers(process):
    """List the descendants of ``process`` that have a server, which are the workers."""
    parents = [child.parent() for child in below(process) if is_server(child)]
    return [parent for parent in parents if parent and not is_server(parent)]


def is_server(process):
    with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
        return SERVER in process.cmdline()
    return False


def below(process):
    return psutil.Process(process.pid).children(recursive=True)


def kill_a_worker_and_the_command(process, output, finished, first, second):
    """Kill a worker when ``first`` series are finished and the command when ``second`` are, and wait for all processes
    to end."""
    wait_for(lambda: len(finished(output)) >= first, process, output)
    wait_for(lambda: workers(process), process, output)[0].kill()
    wait_for(lambda: len(finished(output)) >= second, process, output)
    kill_with_its_servers(process)


def kill_with_its_servers(process):
    """Kill a command and wait until its descendants have ended."""
    orphans = below(process)
    process.kill()
    assert process.wait() < 0, "the command ended before it was killed"
    assert psutil.wait_procs(orphans, timeout=60)[1] == []
