"""Pages of the documentation that are made from files elsewhere in the repository."""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import architecture
from mkdocs.structure.files import File

from groupmorph_monai.apps.arguments import make_parser
from groupmorph_monai.apps.setting_values import settings_rows

ROOT = Path(__file__).parents[1]
PAGES = {
    "start.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
PACKAGES = ("apps.api", "space", "probability", "networks", "data", "workflow", "evaluation")


def on_files(files, config):
    for name, source in PAGES.items():
        # A link to a page of the site is relative to it; other files of the repository are named without a link.
        text = (ROOT / source).read_text(encoding="utf-8")
        for page, file in PAGES.items():
            text = text.replace(f"]({file})", f"]({page})")
        text = text.replace("](bundle/docs/", "](")
        text = re.sub(r"\[([^\]]+)\]\((?!http|#)(?!\S+\.(?:md|png)[#)])[^)]*\)", r"\1", text)
        files.append(File.generated(config, name, content=text))
    reference = "# Reference\n\n" + "".join(f"::: groupmorph_monai.{package}\n\n" for package in PACKAGES)
    files.append(File.generated(config, "reference.md", content=reference))
    files.append(File.generated(config, "options.md", content=options()))
    files.append(File.generated(config, "settings.md", content=settings()))
    files.append(File.generated(config, "architecture.md", content=architecture.page()))
    files.append(File.generated(config, "architecture.svg", content=architecture.drawing()))
    return files


def options() -> str:
    """Return the help of each command as one page."""
    os.environ["COLUMNS"] = "100"
    parts = [f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n" for parser in commands(make_parser())]
    return "\n".join(["# Options of each command\n", *parts])


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands(command)


def settings() -> str:
    """Return all settings as one table."""
    lines = ["# Settings for `--set`\n", "| name | unit | values | default | purpose |", "|---|---|---|---|---|"]
    for name, *columns in settings_rows():
        lines.append(" | ".join([f"| `{name}`", *(text.replace("|", "\\|") for text in columns)]) + " |")
    return "\n".join(lines) + "\n"
