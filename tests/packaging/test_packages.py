"""What the sdist and the wheel hold; `make package-check` installs the wheel and tries it."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pyro_ext

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyro_ext"


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        check=True,
    )
    (sdist,), (wheel,) = folder.glob("pyro_ext-*.tar.gz"), folder.glob("pyro_ext-*.whl")
    return sdist, wheel


def test_wheel_ships_the_package_and_nothing_else(packages):
    files = [Path(name) for name in zipfile.ZipFile(packages[1]).namelist()]
    shipped = {file.as_posix() for file in files if not file.parts[0].endswith(".dist-info")}
    kept = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert shipped == {path.relative_to(ROOT).as_posix() for path in kept}
    assert {"pyro_ext/py.typed", "pyro_ext/references.bib"} <= shipped
    assert any(file.match("*.dist-info/licenses/LICENSE") for file in files)


def test_sdist_holds_what_the_tests_need(packages):
    with tarfile.open(packages[0]) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "constraints.txt", "Makefile", "tests/test_layout.py"} <= shipped
    assert {"models/vae.py", "guides/vae.py", "README.md", "LICENSE"} <= shipped


def test_packages_have_the_version_of_the_package(packages):
    for package in packages:
        assert package.name.startswith(f"pyro_ext-{pyro_ext.__version__}")


def test_every_dependency_has_a_floor():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(">=" in dependency for dependency in project["dependencies"])
