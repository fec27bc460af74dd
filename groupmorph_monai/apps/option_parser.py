"""Argument parser that reports each mistake in one line."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

# Messages of argparse and their replacements.
_WORDINGS = (
    (r"argument (.+?): ignored explicit argument (.+)", r"\1: expected no value, got \2"),
    (r"argument (.+?): expected (?:one|at least one) argument", r"\1: expected a value, got none"),
    (r"argument (.+?): expected (\d+) arguments", r"\1: expected \2 values, got fewer"),
    (r"argument (.+?): not allowed with argument (.+)", r"\1: not allowed together with \2"),
    (r"argument (.+?): (.+)", r"\1: \2"),
)
# A dash or a minus sign, which text editors substitute for the hyphens of an option.
_DASH = re.compile("\\A-?[\u2010-\u2015\u2212]-?")
_CHOICE = r"argument (.+?): invalid choice: (.+) \(choose from (.+)\)"
_REQUIRED = r"the following arguments are required: (.+)"
_ONE_REQUIRED = r"one of the arguments (.+) is required"


class OptionParser(argparse.ArgumentParser):
    """Parser that ends the process after a mistake with one line and exit code 2, as do the parsers of its subcommands.

    Options cannot be abbreviated: a typo must not be taken for another option.
    """

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self._values = argparse.Namespace()

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments and refuse unknown ones, here, because the subcommand's parser knows its own options."""
        args = sys.argv[1:] if args is None else list(args)
        self._check_options(args)
        self._values = argparse.Namespace() if namespace is None else namespace
        values, rest = super().parse_known_args(args, self._values)
        if rest:
            lists = [action.metavar for action in self._actions if not action.option_strings and action.nargs == "+"]
            cure = f"; give all {lists[0]} together" if lists else ""
            self.error(f"{self._command}expected no further argument, got {rest[0]!r}{cure}")
        return values, rest

    def error(self, message: str) -> NoReturn:
        """Print the message in this package's wording and exit."""
        message = " ".join(self._reworded(message).splitlines())
        self.exit(2, f"groupmorph: {message}{'' if message.endswith('?') else ';'} see {self.prog} --help\n")

    @property
    def _command(self) -> str:
        name = self.prog.removeprefix("groupmorph").strip()
        return f"{name}: " if name else ""

    def _reworded(self, message: str) -> str:
        if match := re.fullmatch(_CHOICE, message, re.DOTALL):
            name, value, choices = match[1], match[2], match[3].replace("'", "")
            close = difflib.get_close_matches(value.strip("'"), choices.split(", "), 1)
            return f"{name}: expected one of {choices}, got {value}" + (f"; did you mean {close[0]}?" if close else "")
        if match := re.fullmatch(_REQUIRED, message):
            return f"{self._command}expected {match[1]}, got none{self._cure(match[1].split(', '))}"
        if match := re.fullmatch(_ONE_REQUIRED, message):
            return f"{self._command}expected {match[1].replace(' ', ' or ')}, got none"
        for pattern, wording in _WORDINGS:
            if match := re.fullmatch(pattern, message, re.DOTALL):
                return match.expand(wording)
        return message

    def _cure(self, missing: Sequence[str]) -> str:
        """Suggest what to do if an option with several values has taken those of a missing argument."""
        greedy = [
            action.option_strings[0]
            for action in self._actions
            if action.option_strings and action.nargs == "+" and len(getattr(self._values, action.dest, None) or ()) > 1
        ]
        lists = [action.metavar for action in self._actions if not action.option_strings and action.metavar in missing]
        if not greedy or not lists:
            return ""
        return f"; put {lists[0]} before {greedy[0]}, which took several, or separate them by --"

    def _check_options(self, args: Sequence[str]) -> None:
        """Refuse an unknown option before argparse reports a missing value or a missing required option instead."""
        args = list(takewhile(lambda arg: arg != "--", args))
        if self._subparsers is not None:  # what follows the subcommand is for its own parser
            args = list(takewhile(lambda arg: arg.startswith("-"), args))
        if "-h" in args or "--help" in args:
            return
        for arg in args:
            name = arg.partition("=")[0]
            if (option := _DASH.sub("--", name)) != name and option in self._option_string_actions:
                self.error(f"{name}: expected {option} with two hyphens, got a dash; type it instead of pasting it")
            # argparse treats words with spaces and negative numbers as values.
            if re.match(r"-[^\d.]", arg) and " " not in arg and name not in self._option_string_actions:
                of_command = f" of {self._command[:-2]}" if self._command else ""
                self.error(f"{name}: unknown option{of_command}{self._suggestion(name)}")
        self._check_repeated(args)

    def _suggestion(self, name: str) -> str:
        """Suggest what to type instead of an unknown option."""
        if self._is_of_subcommand(name):
            return "; write options after the command"
        options = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        longer = [option for option in options if f"--{option}".startswith(name)]
        close = [f"--{option}" for option in longer or difflib.get_close_matches(name.lstrip("-"), options, 1)]
        return f"; did you mean {' or '.join(close)}?" if close and len(name) > 2 else ""

    def _is_of_subcommand(self, name: str) -> bool:
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return any(name in parser._option_string_actions for group in groups for parser in group.choices.values())

    def _check_repeated(self, args: Sequence[str]) -> None:
        """Refuse an option with two values, of which argparse ignores the first."""
        values: dict[str, str] = {}
        for arg, following in zip(args, [*args[1:], ""]):
            name, equals, value = arg.partition("=")
            action = self._option_string_actions.get(name)
            if not isinstance(action, argparse._StoreAction):
                continue
            value = value if equals else following
            if action.nargs is None and values.get(action.dest, value) != value:
                self.error(f"{name}: expected one value, got {values[action.dest]!r} and {value!r}")
            if action.nargs == "+" and action.dest in values:
                self.error(f"{name}: expected all values after one {name}, got it twice; give all of them together")
            values[action.dest] = value
