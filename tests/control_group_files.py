"""Files of a control group, in Linux's format."""


def write_group(folder, **files):
    """Write the files of a group; ``__`` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n", encoding="utf-8")
