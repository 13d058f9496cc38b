"""Measure the house: the size of its parts, as a table for one or two versions of the code.

    python tests/benchmarks/house.py [--base VERSION] [--saved]

With `--saved` a tiny model is saved by each version, and the code files in its folder are counted.
"""

import ast
import graphlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from versions import build_parser, save_tiny_predictor, unpack_versions, write_rows


def count_lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def find_longest_function(tree: ast.AST) -> int:
    """Return the most lines of a function without its docstring."""
    longest = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            doc_lines = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
            longest = max(longest, (node.end_lineno or 0) - node.lineno + 1 - doc_lines)
    return longest


def list_imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def count_cycles(trees: dict[str, ast.AST], packages: dict[str, list[str]]) -> int:
    """Return 1 if modules import each other in a circle, else 0."""
    graph = {
        name: {found for found in list_imports(tree, packages[name]) if found in trees} - {name}
        for name, tree in trees.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError:
        return 1
    return 0


def count_saved_code(root: Path) -> int:
    """Return how many Python files a version writes beside the weights of a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_predictor(root, folder)
        return len(list(Path(folder).glob("*.py")))


def measure_house(root: Path) -> dict[str, str]:
    """Return the measures of a version by name.

    Args:
        root (`Path`): Folder with `rmat_hf` and `tests`.
    """
    package = root / "rmat_hf"
    files = sorted(package.rglob("*.py"))
    portable = sorted(package.glob("model/*.py")) or sorted(package.glob("*_rmat.py"))
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in files
        if path.name != "__init__.py"
    }
    trees = {name: ast.parse(path.read_text("utf-8")) for name, path in modules.items()}
    packages = {name: name.split(".")[:-1] for name in modules}
    num_lines = count_lines(files)
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    longest = max(map(find_longest_function, trees.values()))
    num_raises = len(re.findall(r"^\s*raise\b", text, re.M))
    return {
        "Python files of rmat_hf": str(len(files)),
        "Python lines of rmat_hf": str(num_lines),
        "Python files at its root": str(len(list(package.glob("*.py")))),
        "files that travel with a checkpoint (model/)": str(len(portable)),
        "lines of them": str(count_lines(portable)),
        "raise statements": str(num_raises),
        "raise per 1,000 lines": f"{1000 * num_raises / num_lines:.1f}",
        "longest function, lines without docstring": str(longest),
        "import cycles": str(count_cycles(trees, packages)),
        "Python lines of tests": str(count_lines(sorted((root / "tests").rglob("*.py")))),
    }


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--saved", action="store_true", help="save a tiny model, count its code")
    arguments = parser.parse_args()
    with unpack_versions(arguments.base) as roots:
        found = {tree: measure_house(root) for tree, root in roots.items()}
        if arguments.saved:
            for tree, root in roots.items():
                found[tree]["code files in a saved folder"] = str(count_saved_code(root))
    rows = [[name, *(measures[name] for measures in found.values())] for name in found["now"]]
    write_rows([["", *found], *rows])


if __name__ == "__main__":
    main()
