"""What is built and installed works without the repository, twice, and leaves nothing when it is removed."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
SMALL = ("typer", "rich", "pydantic", "pyyaml")  # what the command line needs before it needs torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def done(*command: object, cwd: Path) -> str:
    """Run a command that has to succeed; what it printed."""
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def listed() -> list[str]:
    """The files of the repository, also those that are not committed yet."""
    told = done("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in told.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git does not ignore, as someone has them who clones the repository."""
    folder = tmp_path_factory.mktemp("source")
    for name in listed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist; the wheel is built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    done("uv", "build", "--out-dir", folder, cwd=source)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An empty environment with what the command line needs."""
    done("uv", "venv", "--quiet", "env", cwd=tmp_path)
    done("uv", "pip", "install", "--quiet", "--python", "env", *SMALL, cwd=tmp_path)
    return tmp_path / "env"


def installed(environment: Path) -> list[str]:
    """Everything in the environment that is named after the package."""
    return sorted(str(path.relative_to(environment)) for path in environment.rglob("*revsurgeon*"))


def check_commands(environment: Path, folder: Path) -> None:
    """The command line works in a folder that has nothing to do with the repository."""
    program = environment / "bin" / "revsurgeon"
    assert "convert" in done(program, "--help", cwd=folder)
    assert done(program, "recipes", "list", "--quiet", cwd=folder).split() == RECIPES
    assert "mode: re2" in done(program, "recipes", "show", "re2", cwd=folder)


def test_the_wheel_works_without_the_repository_and_leaves_nothing(
    built: Path, environment: Path, tmp_path: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    before = installed(environment)
    for _ in range(2):
        options = ("--quiet", "--reinstall", "--no-deps", "--python", environment)
        done("uv", "pip", "install", *options, wheel, cwd=tmp_path)
        check_commands(environment, tmp_path)
    done("uv", "pip", "uninstall", "--quiet", "--python", environment, "revsurgeon", cwd=tmp_path)
    assert installed(environment) == before == []


def test_an_editable_installation_works_and_leaves_nothing(
    source: Path, environment: Path, tmp_path: Path
) -> None:
    options = ("--quiet", "--no-deps", "--python", environment)
    done("uv", "pip", "install", *options, "--editable", source, cwd=tmp_path)
    check_commands(environment, tmp_path)
    (source / "recipes" / "re2.yaml").touch()
    told = done(
        environment / "bin" / "python", "-c", "import revsurgeon; print(revsurgeon.__file__)", cwd=tmp_path
    )
    assert Path(told.strip()).is_relative_to(source)
    done("uv", "pip", "uninstall", "--quiet", "--python", environment, "revsurgeon", cwd=tmp_path)
    assert installed(environment) == []


def test_the_wheel_has_every_file_of_the_package_and_the_recipes(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {name for name in listed() if name.startswith("revsurgeon/")} | {
        f"revsurgeon/presets/{name}.yaml" for name in RECIPES
    }


def test_the_sdist_has_what_its_own_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "recipes/re2.yaml", "tests/models.py"} <= names


def test_twine_finds_nothing_wrong(built: Path) -> None:
    told = done("uvx", "twine", "check", "--strict", *sorted(built.iterdir())[-2:], cwd=built)
    assert told.count("PASSED") == 2
