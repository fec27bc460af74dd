"""The command line. Nothing heavy is imported before the arguments are understood."""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from .arguments import make_parser
from .faults import keep_log, report_fault
from .input_errors import find_input_error
from .interruptions import STOPPED, exit_code, interruptible
from .threads import limit_threads

__all__ = ["main", "run_command"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    args = make_parser().parse_args(arguments)
    return run_command(args, sys.argv[1:] if arguments is None else arguments)


def run_command(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run a command that has been parsed.

    Args:
        arguments: what was typed, for the report and the log of a fault.
    Returns: 0; 2 after one line on standard error, where the user can mend it; 3 where series of a cohort failed; 1
        after a fault of the program, which leaves a log; 130 or 143 where it was stopped.
    """
    args.typed = list(arguments)
    log = keep_log(args.quiet, args.verbose)
    try:
        limit_threads(args.threads)
        with open(os.devnull, "w") if args.quiet else contextlib.nullcontext(sys.stdout) as output:
            with contextlib.redirect_stdout(output):
                code = _run(args)
                sys.stdout.flush()
    except KeyboardInterrupt as stop:
        print(STOPPED, file=sys.stderr)
        return exit_code(stop)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC):
            return _lost_output(error)
        mistake = find_input_error(error)
        if mistake is None:
            report_fault(error, args.typed, log)
            return 1
        print(f"groupmorph: {mistake}", file=sys.stderr)
        return 2
    return code


def _run(args: argparse.Namespace) -> int:
    if args.command == "settings":
        from .setting_values import settings_table

        print("\n".join(settings_table()))
        return 0
    if args.command == "overlays":
        from .configs import overlays_table

        print("\n".join(overlays_table()))
        return 0
    from .commands import COMMANDS

    with interruptible():
        return COMMANDS[args.command](args) or 0


def _lost_output(error: OSError) -> int:
    """End where nobody takes the printed lines any more: silently after ``| head``, in one line on a full disk."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
    if error.errno == errno.EPIPE:
        return 0
    print(f"groupmorph: standard output: expected room for the messages, got {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
