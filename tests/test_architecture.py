"""The parts of the style guide that the linter cannot check. `make check` runs this file."""

import ast
import graphlib
import hashlib
import io
import json
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

REPO_ROOT = Path(__file__).resolve().parents[1]
PACKAGE = REPO_ROOT / "rmat_hf"

# From the lowest layer to the highest. A module imports only from lower layers, a folder also from
# itself.
LAYERS = [
    {"config_validation_rmat", "safe_weights_rmat", "parent_process"},
    {
        "configuration_rmat",
        "atomic_output",
        "bundled_checkpoints",
        "interruption",
        "machine",
        "memory_errors",
        "list_flags",
        "checkpoint_files",
        "worker_processes",
        "message_text",
    },
    {
        "atom_codes_rmat",
        "canonical_order_rmat",
        "centered_linear_rmat",
        "distances_rmat",
        "molecule_limits_rmat",
        "output_lock",
        "write_errors",
    },
    {"command_errors"},
    {
        "attention_rmat",
        "molecule_features_rmat",
        "conformers_rmat",
        "batching_rmat",
        "losses_rmat",
        "model_card_rmat",
        "pair_features_rmat",
        "probabilities_rmat",
    },
    {"pipeline_rmat"},
    {"processing_rmat", "modeling_rmat"},
    {"ensemble_rmat"},
    {"model_loading", "authors_checkpoint", "model_hash"},
    {"data", "conversion"},
    {"batched_inference"},
    {"inference", "screening_options"},
    {"sharded_screening"},
    {"screening"},
    {"distributed_screening"},
    {"training"},
    {"evaluation"},
    {"benchmark_workload"},
    {"benchmarking"},
    {"cli"},
]
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}

# Most lines a file may have; new files get the default.
DEFAULT_MAX_LINES = 300
MAX_LINES = {
    "__init__.py": 80,
    "configuration_rmat.py": 200,
    "molecule_features_rmat.py": 300,
    "conformers_rmat.py": 250,
    "processing_rmat.py": 350,
    "modeling_rmat.py": 700,
    "pipeline_rmat.py": 200,
    "data/__init__.py": 80,
    "data/loading.py": 250,
    "data/splits.py": 250,
    "data/pretraining_targets.py": 300,
    "data/collators.py": 200,
    "training/__init__.py": 80,
    "training/arguments.py": 250,
    "training/metrics.py": 200,
    "training/pretraining.py": 250,
    "training/finetuning.py": 250,
    "inference.py": 250,
    "conversion.py": 200,
    "cli.py": 250,
}
MAX_SCRIPT_LINES = 40

# Files that travel with a checkpoint may import these and the standard library.
PORTABLE_IMPORTS = {"transformers", "huggingface_hub", "torch", "numpy", "rdkit"}
WITHOUT_CHEMISTRY = [
    "attention_rmat.py",
    "centered_linear_rmat.py",
    "config_validation_rmat.py",
    "configuration_rmat.py",
    "losses_rmat.py",
    "model_card_rmat.py",
    "modeling_rmat.py",
    "pair_features_rmat.py",
    "pipeline_rmat.py",
    "probabilities_rmat.py",
    "safe_weights_rmat.py",
]

LINTED_RULES = {"ANN", "BLE", "C90", "D", "F", "I", "PLR0913", "PLR0915", "PLR0917", "S", "T20"}

SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
MODULES = [source for source in SOURCES if Path(source).name != "__init__.py"]
PORTABLE = [source for source in SOURCES if re.fullmatch(r"\w+_rmat\.py", source)]

each_source = pytest.mark.parametrize("source", SOURCES)
each_module = pytest.mark.parametrize("source", MODULES)
each_portable_file = pytest.mark.parametrize("source", PORTABLE)


def read(source: str) -> str:
    return (PACKAGE / source).read_text(encoding="utf-8")


@cache
def parse(source: str) -> ast.Module:
    return ast.parse(read(source), filename=source)


def describe(source: str, node: ast.AST) -> str:
    """A line an editor can jump to."""
    return f"rmat_hf/{source}:{getattr(node, 'lineno', 0)}: {ast.unparse(node).splitlines()[0]}"


def iterate_imports(source: str) -> Iterator[tuple[ast.AST, str]]:
    """Every import of a file, wherever it stands, as a node and an absolute dotted name."""
    package = ["rmat_hf", *Path(source).parts[:-1]]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                dotted = f"{module}.{alias.name}"
                yield node, dotted if is_own_module(dotted) else module


def is_own_module(dotted: str) -> bool:
    parts = dotted.split(".")
    path = PACKAGE.joinpath(*parts[1:])
    return parts[0] == "rmat_hf" and (path.with_suffix(".py").is_file() or path.is_dir())


def get_unit(source: str) -> str:
    """The layer's member a file belongs to: its folder, or its own name at the top level."""
    return Path(source).parts[0].removesuffix(".py")


def iterate_calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def find_files(folder: str, pattern: str) -> list[Path]:
    return sorted((REPO_ROOT / folder).rglob(pattern)) if (REPO_ROOT / folder).is_dir() else []


# Layout


@each_source
def test_file_is_not_too_long(source: str) -> None:
    num_lines = len(read(source).splitlines())
    assert num_lines <= MAX_LINES.get(source, DEFAULT_MAX_LINES), f"{source} has {num_lines} lines"


@each_module
def test_file_has_its_test_file(source: str) -> None:
    test_file = REPO_ROOT / "tests" / Path(source).parent / f"test_{Path(source).name}"
    assert test_file.is_file(), f"rmat_hf/{source} needs {test_file.relative_to(REPO_ROOT)}"


@each_source
def test_file_is_named_after_a_notion(source: str) -> None:
    assert Path(source).stem not in {"utils", "helpers", "common", "misc"}


def test_scripts_are_short_launchers() -> None:
    for path in find_files("scripts", "*"):
        if path.is_file() and "__pycache__" not in path.parts:
            num_lines = len(path.read_text(encoding="utf-8").splitlines())
            assert num_lines <= MAX_SCRIPT_LINES, f"{path.name} has {num_lines} lines"


def test_notebooks_have_no_outputs_and_define_nothing() -> None:
    for path in find_files("notebooks", "*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                code = "".join(cell["source"])
                assert not cell["outputs"], f"{path.name} is saved with outputs"
                assert cell["execution_count"] is None, f"{path.name} is saved with counts"
                assert not re.search(r"^\s*(async\s+)?(def|class)\s", code, re.M), path.name


def test_golden_data_are_described_and_unchanged() -> None:
    golden_dir = REPO_ROOT / "tests" / "golden"
    readme = (golden_dir / "README.md").read_text(encoding="utf-8")
    for path in find_files("tests/golden", "*"):
        if path.is_file() and path.suffix not in {".md", ".pyc"}:
            assert path.name in readme, f"tests/golden/README.md does not mention {path.name}"
    for checksum, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", readme, re.M):
        assert hashlib.sha256((golden_dir / name).read_bytes()).hexdigest() == checksum, name


# Imports point down


@each_module
def test_file_belongs_to_a_layer(source: str) -> None:
    assert get_unit(source) in LAYER_OF, f"add {get_unit(source)} to LAYERS in {__file__}"


@each_module
def test_imports_point_down(source: str) -> None:
    unit = get_unit(source)
    for node, dotted in iterate_imports(source):
        if dotted == "rmat_hf":
            assert [alias.name for alias in getattr(node, "names", [])] == ["__version__"], (
                f"{describe(source, node)}: import from the module that defines the name"
            )
        elif dotted.startswith("rmat_hf."):
            imported = dotted.split(".")[1]
            assert imported == unit or LAYER_OF[imported] < LAYER_OF[unit], describe(source, node)


@each_module
def test_only_portable_files_import_relatively(source: str) -> None:
    for node, _ in iterate_imports(source):
        is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
        assert not is_relative or source in PORTABLE, describe(source, node)


def test_imports_have_no_cycle() -> None:
    graph = {}
    for source in MODULES:
        module = "rmat_hf." + source.removesuffix(".py").replace("/", ".")
        graph[module] = {dotted for _, dotted in iterate_imports(source) if is_own_module(dotted)}
        assert module not in graph[module]
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("source", [name for name in WITHOUT_CHEMISTRY if name in SOURCES])
def test_model_knows_no_chemistry(source: str) -> None:
    imported = {dotted.split(".")[0] for _, dotted in iterate_imports(source)}
    assert "rdkit" not in imported
    own = {dotted for _, dotted in iterate_imports(source) if dotted.startswith("rmat_hf.")}
    assert not own & {"rmat_hf.molecule_features_rmat", "rmat_hf.conformers_rmat"}


# Files that travel with a checkpoint


@each_portable_file
def test_portable_file_imports_only_what_a_checkpoint_may_need(source: str) -> None:
    for node, dotted in iterate_imports(source):
        top = dotted.split(".")[0]
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            assert node.level == 1 and f"{node.module}.py" in PORTABLE, (
                f"{describe(source, node)}: write `from .sibling_rmat import name`"
            )
        else:
            assert top in PORTABLE_IMPORTS | sys.stdlib_module_names, describe(source, node)


@each_portable_file
def test_portable_file_never_names_the_package(source: str) -> None:
    """Not in a docstring either: transformers searches the text, not the syntax tree."""
    found = re.search(r"\b(from|import)\s+rmat_hf\b", read(source))
    assert not found, f"rmat_hf/{source} contains {found and found.group()!r}"


@each_portable_file
def test_transformers_finds_the_same_imports_in_a_portable_file(source: str) -> None:
    path = PACKAGE / source
    assert set(get_imports(path)) <= PORTABLE_IMPORTS | sys.stdlib_module_names
    assert {f"{name}.py" for name in get_relative_imports(path)} <= set(PORTABLE)


# Rules


@each_source
def test_no_blind_except_no_print_no_unannotated_public_function(source: str) -> None:
    blind = {"Exception", "BaseException"}
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = {ast.unparse(name) for name in ast.walk(node.type)} if node.type else blind
            assert not caught & blind, describe(source, node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotated = all(arg.annotation or arg.arg in ("self", "cls") for arg in arguments)
            assert annotated and node.returns, describe(source, node)
    for call, function in iterate_calls(parse(source)):
        assert function != "print" or source == "cli.py", describe(source, call)


@each_source
def test_nothing_is_global_or_hidden(source: str) -> None:
    """No cache in a module, no environment variable, no global seed, no pickle.

    The command line alone may read where the user's cache folder is.
    """
    pattern = (
        r"\b(lru_cache|functools\.cache|os\.environ|os\.getenv|np\.random\.seed|random\.seed"
        r"|torch\.manual_seed|import pickle|weights_only=False)\b"
    )
    for number, line in enumerate(read(source).splitlines(), start=1):
        if source == "cli.py":
            line = line.replace('os.environ.get("XDG_CACHE_HOME")', "")
        assert not re.search(pattern, line), f"rmat_hf/{source}:{number}: {line.strip()}"


@each_source
def test_waivers_name_a_code_and_a_reason(source: str) -> None:
    waiver = re.compile(r"(noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|type: ignore\[[a-z, -]+\])\W+\w{2,}")
    for token in tokenize.generate_tokens(io.StringIO(read(source)).readline):
        if token.type == tokenize.COMMENT and re.search(r"noqa|type: ?ignore", token.string):
            where = f"rmat_hf/{source}:{token.start[0]}: {token.string}"
            assert waiver.search(token.string), f"{where}: give a code and, after it, a reason"


@each_portable_file
def test_every_weight_has_a_readable_name(source: str) -> None:
    for call, function in iterate_calls(parse(source)):
        assert function.split(".")[-1] != "Sequential", describe(source, call)
        assert function.split(".")[-1] != "deepcopy" or source != "modeling_rmat.py", function


@pytest.mark.parametrize("source", [name for name in PORTABLE if name == "modeling_rmat.py"])
def test_forward_is_a_straight_line(source: str) -> None:
    """Values stay on the device and nothing is kept on the module."""
    forwards = [
        node
        for node in ast.walk(parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "forward"
    ]
    for forward in forwards:
        for call, function in iterate_calls(forward):
            method = function.split(".")[-1]
            assert method not in {"item", "tolist", "cpu", "numpy"}, describe(source, call)
        for node in ast.walk(forward):
            stores = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            assert not stores, describe(source, node)


@pytest.mark.parametrize("source", [name for name in PORTABLE if name == "modeling_rmat.py"])
def test_branches_on_the_config_name_their_checkpoints(source: str) -> None:
    lines = read(source).splitlines()
    for node in ast.walk(parse(source)):
        subject = getattr(node, "subject", None) or getattr(node, "test", None)
        if isinstance(node, ast.If | ast.IfExp | ast.Match) and "config." in ast.unparse(subject):
            first = node.lineno - 1
            while first > 0 and lines[first - 1].lstrip().startswith("#"):
                first -= 1
            near = "\n".join(lines[first : subject.end_lineno + 1])
            assert "# CODEPATH:" in near, f"{describe(source, node)}: needs a `# CODEPATH:` comment"


def test_the_linter_checks_the_rest() -> None:
    with (REPO_ROOT / "pyproject.toml").open("rb") as file:
        lint = tomllib.load(file)["tool"]["ruff"]["lint"]
    assert set(lint["select"]) >= LINTED_RULES
    assert lint["mccabe"]["max-complexity"] == 10
    assert lint["pylint"] == {"max-args": 8, "max-positional-args": 2, "max-statements": 40}
