"""Set up the process that MONAI starts for the bundle's commands."""

import ast
import inspect
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from .configs import read_configs
from .input_errors import find_config_error, find_input_error
from .interruptions import catch_signals, exit_code, release_folders
from .setting_values import check_settings
from .settings import SETTINGS
from .signals import STOPPED
from .suggestions import suggestion
from .threads import limit_threads

_EXPRESSIONS = ("$", "@", "%")  # how texts begin that MONAI evaluates
_FLAG = re.compile("--|-[a-zA-Z]")  # how options begin, as in Python Fire


def prepare_process() -> None:
    """Prepare the process of ``python -m monai.bundle``: limit threads to the available cores, keep freed memory, and
    report invalid input or a signal in one line on standard error.

    A program that runs the bundle in memory (a notebook, MONAI Label, federated learning) is left unchanged.
    """
    if not _started_by_monai():
        return
    from ..workflow.memory import keep_freed_memory  # imports PyTorch

    limit_threads()
    sys.excepthook = _report
    catch_signals()
    keep_freed_memory()
    check_options(sys.argv[2:])


def bundle_command() -> str | None:
    """Return the command line of ``python -m monai.bundle``; None in any other process."""
    return shlex.join(["python", "-m", "monai.bundle", *sys.argv[1:]]) if _started_by_monai() else None


def _started_by_monai() -> bool:
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    return main is not None and main.name == "monai.bundle.__main__"


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Report invalid input, a mistake in a config or a signal in one line, and other errors as Python does."""
    if (code := exit_code(error)) is not None:
        release_folders()
        message = STOPPED
    elif input_error := find_input_error(error) or find_config_error(error):
        code, message = 2, f"groupmorph: {input_error}"
    else:
        sys.__excepthook__(kind, error, traceback)
        return
    print(message, file=sys.stderr)
    raise SystemExit(code)


def check_options(words: Sequence[str]) -> None:
    """Refuse options of ``monai.bundle run`` that no config defines or refers to, which MONAI would ignore, invalid
    values of settings, and values that MONAI would evaluate: only config files may contain expressions.

    Args:
        words: the command after ``run``.

    Raises:
        InputError: For an unknown option or an invalid value.
    """
    from fire.parser import DefaultParseValue  # as MONAI's command reads them
    from monai.bundle import run  # imports PyTorch

    options = _options(words)
    files = _files(options.get("config_file", ""))
    if not files:  # named in an --args_file, or missing, which MONAI reports
        return
    content = read_configs(files)
    of_monai, text = set(inspect.signature(run).parameters), str(content)
    names = {*of_monai, *content}
    values = {name: DefaultParseValue(value) for name, value in options.items()}
    for name, value in values.items():
        if name.split("#")[0].split("::")[0] not in names and f"@{name}" not in text:
            cure = suggestion(name, names, "see 'groupmorph settings'", prefix="--")
            raise InputError(f"--{name}: expected a name that the configs define, got one that they do not use; {cure}")
        if name not in of_monai:
            _check_data(name, value)
        if value is not None and isinstance(content.get(name), Mapping):
            raise InputError(
                f"--{name}: expected nothing or None, as configs define this component, got {value!r}; change its "
                "settings, or add a config file to the list"
            )
    _check_paths_and_device(values)
    _check_values({name: value for name, value in values.items() if name in SETTINGS and name in content}, content)


def _check_data(name: str, value: object) -> None:
    for text in [*re.split("#|::", name)[1:], *_texts(value)]:
        if text.startswith(_EXPRESSIONS) or text == "_target_":
            raise InputError(
                f"--{name}: expected a plain value, got {text!r}, which MONAI evaluates; write expressions and "
                "components into a config file, and ./ before the name of a file"
            )
        if "#" in text:
            raise InputError(
                f"--{name}: expected a value without '#', which MONAI replaces by '::', got {text!r}; rename the file, "
                "or use the command groupmorph"
            )


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in a value, also the keys of dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from _texts(part)


def _check_paths_and_device(values: Mapping[str, object]) -> None:
    from .run import checked_device  # imports PyTorch

    place = values.get("output_dir", "out")
    if not isinstance(place, str) or not place.strip():
        raise InputError(f"--output_dir: expected the path of a folder, got {place!r}; for example out")
    if "device" in values:
        checked_device(str(values["device"]))


def _check_values(values: Mapping[str, object], content: Mapping[str, object]) -> None:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    for name, value in values.items():
        if not SETTINGS[name].accepts(value):
            raise InputError(f"--{name}: expected {SETTINGS[name]}, got {value!r}")
    if values:
        try:
            check_settings({**content, **values})
        except InputError as error:
            raise InputError(f"--{str(error).removeprefix('--set ')}") from None


def _options(words: Sequence[str]) -> dict[str, str]:
    """Return the options of a command, ``--name value`` or ``--name=value``, also with a single dash, as Python Fire
    reads them."""
    options = {}
    for word, following in zip(words, [*words[1:], "--"]):
        if _FLAG.match(word):
            name, equals, value = word.lstrip("-").partition("=")
            flag = not equals and _FLAG.match(following)
            options[name.replace("-", "_")] = "True" if flag else value if equals else following
    return options


def _files(value: str) -> list[str]:
    """Return the readable config files in the value of ``--config_file``: a path, or a list of paths."""
    try:
        listed = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        listed = value
    files = [str(file) for file in (listed if isinstance(listed, (list, tuple)) else [value])]
    return files if all(Path(file).is_file() for file in files) else []
