import pytest

from groupmorph_monai.apps.command_line import main


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Return a function that runs a command and checks that it is refused in one line with these words and writes
    nothing."""
    monkeypatch.chdir(tmp_path)

    def check(arguments, *words):
        before = sorted(tmp_path.rglob("*"))
        try:
            code = main(arguments)
        except SystemExit as left:
            code = left.code
        error = capfd.readouterr().err
        lines = error.splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("groupmorph"), error
        assert all(word in lines[0] for word in words), lines[0]
        assert not [path for path in tmp_path.rglob("*") if path not in before and path != tmp_path / "out"]

    return check
