"""Faults at any moment: a process that is killed, or a disk that fails, at its n-th change of the disk."""

import os
import traceback

__all__ = ["at_call", "in_a_child"]

# Everything that changes a disk, or waits for it.
CHANGES = ("open", "fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir")


def at_call(number, act):
    """Let ``act`` happen before the ``number``-th change of the disk by this process."""
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


def in_a_child(act):
    """Run ``act`` in a fork of this process; returns how it ended, as `subprocess` does."""
    child = os.fork()
    if not child:
        try:
            act()
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
