"""The `groupmorph` command. Heavy imports are deferred until the arguments are parsed."""

import argparse
import getpass
import io
import os
import sys
import time
from collections.abc import Sequence

from .arguments import make_parser
from .faults import keep_log, print_waiting_log, report_fault, thread_errors_logged
from .input_errors import find_input_error
from .interruptions import exit_code, interruptible
from .places import check_current_folder
from .signals import STOPPED
from .standard_output import discard, tolerant_output
from .threads import limit_threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    args = make_parser().parse_args(arguments)
    return run_command(args, sys.argv[1:] if arguments is None else arguments)


def run_command(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run a parsed command.

    Args:
        arguments: arguments as typed, for the report and for the log of an internal error.

    Returns:
        Exit code: 0 on success; 1 after an internal error, which leaves a log; 2 after invalid input, with one line on
        standard error; 3 if series of a cohort or an evaluation failed; 130 or 143 after an interruption.
    """
    args.typed, args.started_s = list(arguments), time.process_time()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may contain bytes that are not text
    os.environ["MPLBACKEND"] = "agg"  # figures are only written, and Jupyter passes its own backend on
    _complete_environment()
    log = keep_log(args.quiet, args.verbose)
    try:
        limit_threads(args.threads)
        with tolerant_output(args.quiet) as output:
            code = _run(args)
        print_waiting_log()
    except (Exception, KeyboardInterrupt) as error:
        if (stopped := exit_code(error)) is not None:
            print_waiting_log()
            _print_error(STOPPED)
            return stopped
        input_error = find_input_error(error)
        if input_error is None:
            report_fault(error, args.typed, log)
            return 1
        _print_error(f"groupmorph: {input_error}")
        return 2
    if output.complaint:
        _print_error(f"groupmorph: {output.complaint}")
        return code or 2
    return code


def _complete_environment() -> None:
    """Set USER and HOME, which libraries need, if the system knows neither, as in a container run as any user."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = str(os.getuid())
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"  # as container runtimes do


def _run(args: argparse.Namespace) -> int:
    if args.command == "settings":
        from .setting_values import settings_table

        print("\n".join(settings_table()))
        return 0
    if args.command == "overlays":
        from .configs import overlays_table

        print("\n".join(overlays_table()))
        return 0
    check_current_folder()
    from .commands import COMMANDS

    with interruptible(), thread_errors_logged():
        return COMMANDS[args.command](args) or 0


def _print_error(message: str) -> None:
    """Print a message to standard error; if this fails, as on a full disk, only the exit code tells of the mistake."""
    try:
        print(message, file=sys.stderr)
    except OSError:
        discard(sys.stderr)
