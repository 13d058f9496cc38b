"""The rules of the style guide that the linter cannot check: one test a rule, over all files."""

import ast
import graphlib
import hashlib
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from transformers.dynamic_module_utils import get_imports, get_relative_imports

REPO_ROOT = Path(__file__).resolve().parents[1]
PACKAGE = REPO_ROOT / "rmat_hf"

# From the lowest wing to the highest. A file imports from lower wings and from its own; the files
# at the root that stand in none of them are between `model` and `data`.
WINGS = [{"model"}, {"root"}, {"data"}, {"training"}, {"inference"}, {"evaluation"}]
WINGS += [{"cli"}, {"__main__"}]
LEVEL_OF = {wing: level for level, wings in enumerate(WINGS) for wing in wings}

MAX_LINES = 700
MAX_SCRIPT_LINES = 40
# those in the form of transformers' examples, which are copied and changed
MAX_EXAMPLE_LINES = 150

# Files that travel with a checkpoint may import these and the standard library.
PORTABLE_IMPORTS = {"transformers", "huggingface_hub", "torch", "numpy", "rdkit"}
WITHOUT_CHEMISTRY = ("attention_rmat", "configuration_rmat", "modeling_rmat", "pipeline_rmat")

SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
MODULES = [source for source in SOURCES if Path(source).name != "__init__.py"]
PORTABLE = [source for source in MODULES if source.startswith("model/")]


def read(source: str) -> str:
    return (PACKAGE / source).read_text(encoding="utf-8")


@cache
def parse(source: str) -> ast.Module:
    return ast.parse(read(source), filename=source)


def describe(source: str, node: ast.AST) -> str:
    """A line an editor can jump to."""
    return f"rmat_hf/{source}:{getattr(node, 'lineno', 0)}: {ast.unparse(node).splitlines()[0]}"


@cache
def list_imports(source: str) -> list[tuple[ast.AST, str]]:
    """Every import of a file, wherever it stands, as a node and an absolute dotted name."""
    found: list[tuple[ast.AST, str]] = []
    package = ["rmat_hf", *Path(source).parts[:-1]]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                dotted = f"{module}.{alias.name}"
                found.append((node, dotted if is_own_module(dotted) else module))
    return found


def is_own_module(dotted: str) -> bool:
    parts = dotted.split(".")
    path = PACKAGE.joinpath(*parts[1:])
    return parts[0] == "rmat_hf" and (path.with_suffix(".py").is_file() or path.is_dir())


def get_level(parts: tuple[str, ...]) -> int:
    """The level of a file or of a dotted name without `rmat_hf`."""
    return LEVEL_OF.get(parts[0].removesuffix(".py"), LEVEL_OF["root"])


def iterate_calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def find_files(folder: str, pattern: str) -> list[Path]:
    return sorted((REPO_ROOT / folder).rglob(pattern)) if (REPO_ROOT / folder).is_dir() else []


# Layout


def test_no_file_is_too_long() -> None:
    for source in SOURCES:
        num_lines = len(read(source).splitlines())
        assert num_lines <= MAX_LINES, f"{source} has {num_lines} lines"


def test_files_are_named_after_notions() -> None:
    for source in SOURCES:
        assert Path(source).stem not in {"utils", "helpers", "common", "misc"}, source


def test_scripts_are_short_launchers() -> None:
    for path in find_files("scripts", "*"):
        if path.is_file() and "__pycache__" not in path.parts:
            num_lines = len(path.read_text(encoding="utf-8").splitlines())
            is_example = path.match("run_*.py")
            limit = MAX_EXAMPLE_LINES if is_example else MAX_SCRIPT_LINES
            assert num_lines <= limit, f"{path.name} has {num_lines} lines"


def test_notebooks_have_stored_outputs_without_errors_and_define_nothing() -> None:
    """Run `make notebook-outputs` where this fails."""
    paths = list(find_files("notebooks", "*.ipynb"))
    assert len(paths) > 8 and sum(path.stat().st_size for path in paths) < 5_000_000
    for path in paths:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        codes = [cell for cell in cells if cell["cell_type"] == "code"]
        outputs = [output for cell in codes for output in cell["outputs"]]
        assert [cell["execution_count"] for cell in codes] == [*range(1, len(codes) + 1)], path.name
        shown = {name for output in outputs for name in output.get("data", {})}
        assert shown & {"image/png", "image/svg+xml"}, f"{path.name} has no picture"
        assert not [it for it in outputs if it["output_type"] == "error"], path.name
        assert not [it for it in outputs if it.get("name") == "stderr"], path.name
        code = "\n".join("".join(cell["source"]) for cell in codes)
        assert not re.search(r"^\s*(async\s+)?(def|class)\s", code, re.M), path.name


def test_golden_data_are_described_and_unchanged() -> None:
    golden_dir = REPO_ROOT / "tests" / "golden"
    readme = (golden_dir / "README.md").read_text(encoding="utf-8")
    for path in find_files("tests/golden", "*"):
        if path.is_file() and path.suffix not in {".md", ".pyc"}:
            assert path.name in readme, f"tests/golden/README.md does not mention {path.name}"
    for checksum, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", readme, re.M):
        assert hashlib.sha256((golden_dir / name).read_bytes()).hexdigest() == checksum, name


# Imports


def test_imports_point_down() -> None:
    for source in MODULES:
        parts = Path(source).parts
        for node, dotted in list_imports(source):
            if dotted == "rmat_hf":
                names = [alias.name for alias in getattr(node, "names", [])]
                where = f"{describe(source, node)}: import from the module that defines the name"
                assert names == ["__version__"], where
            elif dotted.startswith("rmat_hf."):
                imported = tuple(dotted.split(".")[1:])
                is_own_wing = imported[0] == parts[0] or get_level(imported) == LEVEL_OF["root"]
                is_down = get_level(imported) < get_level(parts)
                is_own_level = is_own_wing and get_level(imported) == get_level(parts)
                assert is_down or is_own_level, describe(source, node)


def test_imports_have_no_cycle() -> None:
    graph = {}
    for source in MODULES:
        module = "rmat_hf." + source.removesuffix(".py").replace("/", ".")
        graph[module] = {dotted for _, dotted in list_imports(source) if is_own_module(dotted)}
        assert module not in graph[module]
    graphlib.TopologicalSorter(graph).prepare()


def test_only_files_that_travel_import_relatively() -> None:
    for source in MODULES:
        for node, _ in list_imports(source):
            is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
            assert not is_relative or source in PORTABLE, describe(source, node)


def test_the_network_knows_no_chemistry() -> None:
    for name in WITHOUT_CHEMISTRY:
        imported = {dotted.split(".")[0] for _, dotted in list_imports(f"model/{name}.py")}
        assert "rdkit" not in imported, name


# Files that travel with a checkpoint


def test_files_that_travel_import_only_what_a_checkpoint_may_need() -> None:
    for source in PORTABLE:
        for node, dotted in list_imports(source):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                where = f"{describe(source, node)}: write `from .sibling_rmat import name`"
                assert node.level == 1 and f"model/{node.module}.py" in PORTABLE, where
            else:
                top = dotted.split(".")[0]
                assert top in PORTABLE_IMPORTS | sys.stdlib_module_names, describe(source, node)


def test_files_that_travel_never_name_the_package() -> None:
    """Not in a docstring either: transformers searches the text, not the syntax tree."""
    for source in PORTABLE:
        found = re.search(r"\b(from|import)\s+rmat_hf\b", read(source))
        assert not found, f"rmat_hf/{source} contains {found and found.group()!r}"


def test_transformers_finds_the_same_imports_in_files_that_travel() -> None:
    for source in PORTABLE:
        path = PACKAGE / source
        assert set(get_imports(path)) <= PORTABLE_IMPORTS | sys.stdlib_module_names
        assert {f"model/{name}.py" for name in get_relative_imports(path)} <= set(PORTABLE)


# Rules


def test_nothing_is_global_or_hidden() -> None:
    """No cache in a module, no environment variable, no global seed, no pickle.

    The command line alone may read where the user's cache folder is.
    """
    pattern = (
        r"\b(lru_cache|functools\.cache|os\.environ|os\.getenv|np\.random\.seed|random\.seed"
        r"|torch\.manual_seed|import pickle|weights_only=False)\b"
    )
    for source in SOURCES:
        for number, line in enumerate(read(source).splitlines(), start=1):
            if source == "cli.py":
                line = line.replace('os.environ.get("XDG_CACHE_HOME")', "")
            assert not re.search(pattern, line), f"rmat_hf/{source}:{number}: {line.strip()}"


def test_waivers_name_a_code_and_a_reason() -> None:
    waiver = re.compile(r"(noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|type: ignore\[[a-z, -]+\])\W+\w{2,}")
    for source in SOURCES:
        for token in tokenize.generate_tokens(io.StringIO(read(source)).readline):
            if token.type == tokenize.COMMENT and re.search(r"noqa|type: ?ignore", token.string):
                where = f"rmat_hf/{source}:{token.start[0]}: {token.string}"
                assert waiver.search(token.string), f"{where}: give a code and, after it, a reason"


def test_every_weight_has_a_readable_name() -> None:
    for source in PORTABLE:
        for call, function in iterate_calls(parse(source)):
            assert function.split(".")[-1] not in {"Sequential", "deepcopy"}, describe(source, call)


def test_forward_is_a_straight_line() -> None:
    """Values stay on the device and nothing is kept on the module."""
    forwards = [
        node
        for node in ast.walk(parse("model/modeling_rmat.py"))
        if isinstance(node, ast.FunctionDef) and node.name == "forward"
    ]
    assert forwards
    for forward in forwards:
        for call, function in iterate_calls(forward):
            method = function.split(".")[-1]
            where = describe("model/modeling_rmat.py", call)
            assert method not in {"item", "tolist", "cpu", "numpy"}, where
        for node in ast.walk(forward):
            stores = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            assert not stores, describe("model/modeling_rmat.py", node)


def test_branches_on_the_config_name_their_checkpoints() -> None:
    source = "model/modeling_rmat.py"
    lines = read(source).splitlines()
    for node in ast.walk(parse(source)):
        subject = getattr(node, "subject", None) or getattr(node, "test", None)
        if isinstance(node, ast.If | ast.IfExp | ast.Match) and "config." in ast.unparse(subject):
            first = node.lineno - 1
            while first > 0 and lines[first - 1].lstrip().startswith("#"):
                first -= 1
            near = "\n".join(lines[first : subject.end_lineno + 1])
            assert "# CODEPATH:" in near, f"{describe(source, node)}: needs a `# CODEPATH:` comment"
