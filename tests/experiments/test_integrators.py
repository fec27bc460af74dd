from experiments.integrators import integrators


def test_integrators_are_compared_by_error_inversion_and_folds():
    rows = {row["method"]: row for row in integrators([1], (24, 24, 24), 3.0)}
    squarings = [rows[f"scaling and squaring, {n} squarings"] for n in range(9)]
    assert squarings[0]["mean error, voxels"] > 4 * squarings[5]["mean error, voxels"] > 0
    assert squarings[5]["greatest inversion error, voxels"] < 0.5  # VoxelMorph-diff, Section 4.4.3
    assert rows["Runge-Kutta, 8 steps"]["mean error, voxels"] < 0.1 * rows["Euler, 4 steps"]["mean error, voxels"]
    assert all(row["seconds"] > 0 for row in rows.values())
