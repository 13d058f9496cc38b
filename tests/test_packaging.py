"""The wheel holds the whole package, and works without the checkout."""

import ast
import email
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# What a distribution brings along for direct use, besides the module named like it.
PROVIDED_BY = {
    "py3dmol": {"py3Dmol"},
    "scikit-learn": {"sklearn", "scipy", "threadpoolctl"},
    "huggingface-hub": {"huggingface_hub", "filelock", "yaml"},
    "datasets": {"datasets", "pandas", "pyarrow", "tqdm"},
}
# Extras whose packages the library itself imports, where somebody asks for it.
IMPORTED_EXTRAS = ("demo", "excel", "hpo", "notebooks", "onnx", "peft", "tracking", "viz")


@pytest.fixture(scope="module")
def wheel_path(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that no build output is left behind or picked up."""
    source_dir = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repo_root / "rmat_hf", source_dir / "rmat_hf", ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, source_dir)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=source_dir, check=True)
    (path,) = (source_dir / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(wheel_path: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(wheel_path) as file:
        yield file


def find_member(wheel: zipfile.ZipFile, name: str) -> str:
    """The path of a file of the wheel's metadata folder."""
    (member,) = [member for member in wheel.namelist() if member.endswith(f".dist-info/{name}")]
    return member


def read_version(repo_root: Path) -> str:
    source = (repo_root / "rmat_hf" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.M)
    return version


def test_wheel_contains_every_file_of_the_package(repo_root: Path, wheel: zipfile.ZipFile) -> None:
    in_tree = {
        path.relative_to(repo_root).as_posix()
        for path in (repo_root / "rmat_hf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == in_tree
    assert {"rmat_hf/py.typed", "rmat_hf/data/freesolv/freesolv.csv"} <= in_wheel


def test_wheel_metadata_agree_with_the_package(repo_root: Path, wheel: zipfile.ZipFile) -> None:
    metadata = email.message_from_bytes(wheel.read(find_member(wheel, "METADATA")))
    assert metadata["Name"] == "rmat-hf"
    assert metadata["Version"] == read_version(repo_root)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"viz", "hpo", "tracking", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert {"Documentation", "Source", "Issues", "Changelog"} <= {
        url.split(",")[0] for url in metadata.get_all("Project-URL", [])
    }
    text = wheel.read(find_member(wheel, "licenses/LICENSE")).decode()
    assert text == (repo_root / "LICENSE").read_text(encoding="utf-8")
    changelog = (repo_root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.M)[0] == read_version(repo_root)


def test_every_import_of_the_package_is_declared(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    provided = {"rmat_hf", *sys.stdlib_module_names}
    extras = project["optional-dependencies"]
    named = itertools.chain(*(extras[name] for name in IMPORTED_EXTRAS))
    for requirement in [*project["dependencies"], *named]:
        (name,) = re.findall(r"^[\w-]+", requirement)
        provided |= PROVIDED_BY.get(name, {name.replace("-", "_")})
    for path in (repo_root / "rmat_hf").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(source)))
        named = [it.name for node in nodes if isinstance(node, ast.Import) for it in node.names]
        named += [it.module or "" for it in nodes if isinstance(it, ast.ImportFrom) if not it.level]
        imported = {name.split(".")[0] for name in named}
        assert imported <= provided, f"{path.name} imports {imported - provided}"


def test_the_range_of_transformers_is_the_one_that_its_script_tries(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (declared,) = [it for it in project["dependencies"] if it.startswith("transformers")]
    oldest, above = re.findall(r"5\.\d+", declared)
    script = (repo_root / "scripts" / "test_transformers_range.sh").read_text(encoding="utf-8")
    tried = [int(minor) for minor in re.findall(r"\b5\.(\d+)\.\d+", script)]
    assert declared == f"transformers>={oldest},<{above}"
    assert [f"5.{tried[0]}", f"5.{tried[-1] + 1}"] == [oldest, above] and len(tried) > 2
    readme = (repo_root / "README.md").read_text(encoding="utf-8")
    assert f"transformers {oldest} to 5.{tried[-1]} are tested" in readme


def test_extras_of_users_bring_no_tool_of_developers(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.findall(r"[\w-]+", everything)) - {"rmat-hf"}
    assert named == extras.keys() - {"all", "dev", "docs"}
    tools = {re.findall(r"^[\w-]+", it)[0] for it in extras["dev"]} - {"rmat-hf"}
    of_users = itertools.chain(project["dependencies"], *(extras[name] for name in named))
    assert not tools & {re.findall(r"^[\w-]+", it)[0] for it in of_users}


def test_the_recipe_of_conda_asks_for_what_the_package_needs(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    recipe = (repo_root / "conda" / "meta.yaml").read_text(encoding="utf-8")
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    names["huggingface-hub"] = "huggingface_hub"
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["viz"]]:
        name, versions = re.findall(r"^([\w-]+)(.*)$", requirement)[0]
        assert f"    - {names.get(name, name)} {versions}\n" in recipe, requirement
    assert f'version = "{read_version(repo_root)}"' in recipe


def test_every_address_of_the_repository_is_that_of_its_owner(repo_root: Path) -> None:
    """`project.urls` says who it is; a fork changes all of them with one `sed`."""
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (owner,) = re.findall(r"github\.com/([\w-]+)/rmat-hf$", project["urls"]["Source"])
    folders = [repo_root / name for name in (".github", "conda", "docs", "docker", "notebooks")]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    paths += [
        path for path in repo_root.iterdir() if path.suffix in {".md", ".cff", ".yml", ".toml"}
    ]
    found = {
        one or other
        for path in paths
        for one, other in re.findall(
            r"github\.com/([\w-]+)/rmat-hf\b|([\w-]+)\.github\.io\b",
            path.read_text(encoding="utf-8", errors="replace"),
        )
    }
    assert found == {owner, "YOU"}  # the second in what a fork is told


def test_constraints_pin_every_declared_requirement(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    for requirement in [*project["dependencies"], *itertools.chain(*extras.values())]:
        (name,) = re.findall(r"^[\w-]+", requirement)
        is_own_extra = name == project["name"]
        assert is_own_extra or name in pinned, f"constraints.txt has no {name}"


@pytest.mark.slow
def test_wheel_works_without_the_checkout(
    repo_root: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import importlib.resources, importlib.metadata, rmat_hf\n"
        "data = importlib.resources.files('rmat_hf') / 'data' / 'freesolv' / 'freesolv.csv'\n"
        "assert data.read_text().startswith('smiles,')\n"
        "(command,) = importlib.metadata.distribution('rmat-hf').entry_points\n"
        "assert callable(command.load())\n"
        "print(rmat_hf.__file__, rmat_hf.__version__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    init_file = tmp_path / "rmat_hf" / "__init__.py"
    assert result.stdout.split() == [str(init_file), read_version(repo_root)]


@pytest.mark.parametrize(
    ("packages", "exit_code", "line"),
    [
        ([{"vulns": []}, {"skip_reason": "not found"}], 0, "1 of 2 pinned versions were looked up"),
        ([{"vulns": [{"id": "PYSEC-1"}]}], 1, "torch 2.0: PYSEC-1"),
        (None, 0, "Nothing was audited, pip-audit says: ['no connection']"),
    ],
)
def test_audit_fails_on_a_known_vulnerability_and_counts_what_it_cannot_tell(
    packages: list[dict[str, Any]] | None,
    exit_code: int,
    line: str,
    tmp_path: Path,
    repo_root: Path,
) -> None:
    found = [{"name": "torch", "version": "2.0", **package} for package in packages or []]
    auditor = tmp_path / "pip-audit"
    output = f"echo '{json.dumps({'dependencies': found})}'"
    auditor.write_text(f"#!/bin/sh\n{output if packages else 'echo no connection >&2; exit 1'}\n")
    auditor.chmod(0o755)
    script = repo_root / "scripts" / "audit_constraints.py"
    command = [sys.executable, str(script), str(auditor)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == exit_code, run.stderr
    assert line in run.stdout
