"""Set up the process that MONAI starts for the bundle's commands."""

import ast
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from .configs import read_configs
from .input_errors import explain_input_errors
from .interruptions import end_in_one_line
from .setting_values import check_settings
from .settings import SETTINGS
from .suggestions import suggestion

__all__ = ["check_options", "prepare_process"]

_EXPRESSIONS = ("$", "@", "%")  # how values begin that MONAI evaluates


def prepare_process() -> None:
    """Prepare the process of ``python -m monai.bundle``: limit threads to the available cores, keep freed memory, and
    report invalid input or a signal in one line on standard error.

    A program that runs the bundle in memory (a notebook, MONAI Label, federated learning) is left unchanged.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__":
        return
    from ..workflow.memory import keep_freed_memory  # imports PyTorch

    explain_input_errors()
    end_in_one_line()
    keep_freed_memory()
    check_options(sys.argv[2:])


def check_options(words: Sequence[str]) -> None:
    """Refuse options of ``monai.bundle run`` that no config defines or refers to, which MONAI would ignore, and invalid
    values of settings. Expressions and references (``$``, ``@``, ``%``) are left to MONAI.

    Args:
        words: the command after ``run``.

    Raises:
        InputError: For an unknown option or an invalid value.
    """
    from monai.bundle import run  # imports PyTorch

    options = _options(words)
    files = _files(options.get("config_file", ""))
    if not files:  # named in an --args_file, or missing, which MONAI reports
        return
    content = read_configs(files)
    names, text = {*inspect.signature(run).parameters, *content}, str(content)
    for name in options:
        if name.split("#")[0].split("::")[0] not in names and f"@{name}" not in text:
            cure = suggestion(name, names, "see 'groupmorph settings'", prefix="--")
            raise InputError(f"--{name}: expected a name that the configs define, got one that they do not use; {cure}")
    _check_paths_and_device(options)
    _check_values({name: text for name, text in options.items() if name in SETTINGS and name in content}, content)


def _check_paths_and_device(texts: Mapping[str, str]) -> None:
    from fire.parser import DefaultParseValue  # as MONAI's command reads them

    from .run import checked_device  # imports PyTorch

    place, device = texts.get("output_dir", "out"), texts.get("device", "$")
    if not isinstance(value := DefaultParseValue(place), str) or not value.strip():
        raise InputError(f"--output_dir: expected the path of a folder, got {place!r}; for example out")
    if device[:1] not in _EXPRESSIONS:
        checked_device(device)


def _check_values(texts: Mapping[str, str], content: Mapping[str, object]) -> None:
    from fire.parser import DefaultParseValue  # as MONAI's command reads them

    values = {name: DefaultParseValue(text) for name, text in texts.items() if text[:1] not in _EXPRESSIONS}
    for name, value in values.items():
        values[name] = value = list(value) if isinstance(value, tuple) else value
        if not SETTINGS[name].accepts(value):
            raise InputError(f"--{name}: expected {SETTINGS[name]}, got {texts[name]!r}")
    if values and len(values) == len(texts):
        try:
            check_settings({**content, **values})
        except InputError as error:
            raise InputError(f"--{str(error).removeprefix('--set ')}") from None


def _options(words: Sequence[str]) -> dict[str, str]:
    """Return the options of a command, ``--name value`` or ``--name=value``, as Python Fire reads them."""
    options = {}
    for word, following in zip(words, [*words[1:], ""]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flag = not equals and (not following or following.startswith("--"))
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
