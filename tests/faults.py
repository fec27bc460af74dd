"""Faults at any moment: the process is killed, or the disk fails, at the n-th change of the disk."""

import os
import signal
import traceback

import torch

KILLED = -signal.SIGKILL  # exit code of a child in which `kill` was called

# Functions that change the disk, or wait for it.
CHANGES = ("open", "fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir")


def at_call(number, act):
    """Call ``act`` before the ``number``-th change of the disk by this process."""
    calls = 0

    def counted(change):
        def instead(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls >= number:
                act(calls == number)
            return change(*arguments, **options)

        return instead

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def kill(first):
    os.kill(os.getpid(), signal.SIGKILL)


def at_every_call(write, fault, step=1):
    """Run ``write`` in children in which ``fault`` happens before the ``step``-th change of the disk, then before the
    ``2 * step``-th, until one of them does not come so far. Yields how each ended: the last one, 0."""
    end, number = None, 0
    while end != 0:
        number += step

        def act(number=number):
            at_call(number, fault)
            write()

        end = in_a_child(act)
        yield end


def in_a_child(act):
    """Run ``act`` in a fork of this process and return its exit code, as `subprocess` does."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # a fork has no OpenMP threads and would wait for them forever
        try:
            act()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
