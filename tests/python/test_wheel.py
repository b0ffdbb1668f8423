"""`pip install .` gives a package that stands on its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **kwargs):
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, text=True, capture_output=True, check=False, **kwargs
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_installs_imports_and_has_its_data(tmp_path):
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    # The build folder is kept, so that a second run compiles nothing. CUDA kernels, which take
    # minutes, are compiled by `make build`: what the wheel contains does not depend on them.
    build = ("-C", f"build-dir={ROOT / 'build' / 'wheel'}", "-C", "cmake.define.ANYPREC_CUDA=OFF")
    run(*pip, "wheel", ".", "--no-build-isolation", "--no-deps", *build, "-w", tmp_path)
    (wheel,) = tmp_path.glob("anyprec-*.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", site, wheel)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    code = (
        "import anyprec, torch; from anyprec.modules import family_patterns; "
        "from anyprec.recipes import load_recipe, recipe_names; "
        "assert [load_recipe(name).name for name in recipe_names()][-1] == 'fast'; "
        "from anyprec.datasets import documents; "
        "assert family_patterns('llama') and next(documents('builtin')[1]); "
        "assert torch.ops.anyprec.linear; print(anyprec.__file__)"
    )
    where = run(sys.executable, "-c", code, env=environment, stdin=subprocess.DEVNULL)
    assert Path(where.strip()).is_relative_to(site)
    version = run(site / "bin" / "anyprec", "--version", env=environment)
    assert version.split() == ["anyprec", wheel.name.split("-")[1]]
