"""Pages of the documentation that are made from files elsewhere in the repository."""

import re
from pathlib import Path

import architecture
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "start.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
PACKAGES = ("space", "probability", "networks", "data", "workflow", "evaluation")


def on_files(files, config):
    for name, source in PAGES.items():
        # A link to a page of the site is relative to it; other files of the repository are named without a link.
        text = (ROOT / source).read_text(encoding="utf-8").replace("](bundle/docs/", "](")
        text = re.sub(r"\[([^\]]+)\]\((?!http|#)(?!\S+\.(?:md|png)[#)])[^)]*\)", r"\1", text)
        files.append(File.generated(config, name, content=text))
    reference = "# Reference\n\n" + "".join(f"::: groupmorph_monai.{package}\n\n" for package in PACKAGES)
    files.append(File.generated(config, "reference.md", content=reference))
    files.append(File.generated(config, "architecture.md", content=architecture.page()))
    files.append(File.generated(config, "architecture.svg", content=architecture.drawing()))
    return files
