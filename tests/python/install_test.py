"""pip installs the module from a clone into a virtual environment, without network."""

import os
import shutil
import subprocess
from pathlib import Path

root = Path(__file__).resolve().parents[2]


def test_a_clone_can_be_installed_with_pip(tmp_path):
    clone, venv = tmp_path / "clone", tmp_path / "venv"
    outside = [entry.name for entry in root.iterdir() if entry.name.startswith((".git", "build"))]
    shutil.copytree(root, clone, ignore=lambda folder, names: outside if folder == str(root) else [])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["CMAKE_BUILD_TYPE"] = "None"  # not optimized: that is quicker

    def run(*command):
        return subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)

    run("/usr/bin/python3", "-m", "venv", "--system-site-packages", venv)
    run(venv / "bin/pip", "install", "--no-index", "--no-build-isolation", clone)

    program = "import dense; t = dense.Tape(); x = t.input()\n"
    program += "print(dense.__file__, t.compile(x * x, wrt=x).run([3]).grads)"
    path, gradient = run(venv / "bin/python", "-c", program).split(maxsplit=1)
    assert Path(path).is_relative_to(venv) and gradient == "[6.]\n"
    new = {entry.name for entry in clone.iterdir()} - {entry.name for entry in root.iterdir()}
    assert new <= {"build-pip"}  # nothing else was left in the clone

    run(venv / "bin/pip", "uninstall", "--yes", "dense")
    assert not Path(path).exists()
