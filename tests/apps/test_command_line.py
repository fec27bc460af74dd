from groupmorph_monai.apps import command_line


def test_training_says_how_its_weights_are_used(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command_line, "_run", lambda *given, **chosen: (tmp_path / "model_best.pt").touch())
    overlays = ("data/phantom_small", "models/voxelmorph_diff", "modes/surfaces", "integrators/euler")
    options = [word for name in overlays for word in ("--overlay", name)]
    assert command_line.main(["train", *options, "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    # What changes the training alone is not for registration, which would refuse it.
    assert "register SERIES --overlay models/voxelmorph_diff --overlay integrators/euler --weights" in told
