import numpy as np

from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.report import (
    ErrorsOfLabel,
    describe_rows,
    describe_thirds,
    name_row,
)


def build_arguments(problem_type: str, names: list[str]) -> FinetuningArguments:
    return FinetuningArguments(
        dataset="table.csv", label_columns=names, output_dir="run", problem_type=problem_type
    )


def read_cells(table: str) -> list[list[str]]:
    return [[it.strip() for it in line.strip("|").split("|")] for line in table.splitlines()]


def test_what_was_read_is_told_by_label_and_part() -> None:
    parts = {"train": np.array([[1.0], [np.nan]]), "test": np.array([[-3.0]])}
    arguments = build_arguments("regression", ["y"])
    arguments.label_units = ["nM"]
    lines = describe_rows(parts, arguments=arguments, num_dropped=2)
    assert lines[0] == "table.csv: 3 molecules to use, 2 rows dropped."
    assert "y: 2 values, mean -1.000" in lines[1]
    assert "from -3.000 to 1.000" in lines[1]
    assert "nM" in lines[1]
    assert lines[2] == "Parts by random split: 2 train, 1 test molecules."
    options = {"noun": "rows", "num_merged": 4}
    first, *_, last = describe_rows(parts, arguments=arguments, num_dropped=2, **options)
    assert first == "table.csv: 3 rows to use, 4 rows merged into others, 2 rows dropped."
    assert last.endswith("1 test rows.")


def test_a_row_is_a_molecule_unless_one_has_several() -> None:
    assert name_row("molecule", ["C", "CC"], ["N"]) == "molecule"
    assert name_row("molecule", ["C", "CC"], ["C"]) == "row"
    assert name_row("atom", ["C", "C"]) == "atom"


def test_classes_are_counted_and_of_many_labels_only_the_first_are_named() -> None:
    parts = {"train": np.array([[0.0], [2.0], [2.0]])}
    arguments = build_arguments("single_label_classification", ["y"])
    classes = ["low", "middle", "high"]
    lines = describe_rows(parts, arguments=arguments, num_dropped=0, class_names=classes)
    assert "1 low, 0 middle, 2 high" in lines[1]
    names = [f"assay {idx}" for idx in range(600)]
    arguments = build_arguments("multi_label_classification", names)
    lines = describe_rows({"train": np.ones((4, 600))}, arguments=arguments, num_dropped=0)
    assert len(lines) < 20
    assert "100% yes" in lines[1]


def test_thirds_by_novelty_have_coverage_and_width() -> None:
    novelty = np.arange(12.0)[::-1] / 10
    errors = np.where(novelty > 0.75, 2.0, 0.5)
    novelty[0], errors[5] = np.nan, np.nan
    inside = np.where(np.isnan(errors), np.nan, errors < 1)
    table = describe_thirds(ErrorsOfLabel(novelty, errors, inside, np.full(12, 2.0)))
    header, _, *rows = read_cells(table)
    assert header[-2:] == ["measured is inside", "mean width"]
    assert [row[1] for row in rows] == ["4", "3", "3", "10"]
    assert [row[3] for row in rows] == ["0.500", "0.500", "2.000", "0.950"]
    assert [row[4] for row in rows] == ["100%", "100%", "0%", "70%"]
    assert {row[5] for row in rows} == {"2.000"}
    # an interval from nothing on has no width on a logarithmic scale
    width = np.where(novelty > 0.75, np.inf, 2.0)
    table = describe_thirds(ErrorsOfLabel(novelty, errors, inside, width))
    widths = [row[5] for row in read_cells(table)[2:]]
    assert widths == ["2.000", "2.000", "– (3 open)", "2.000 (3 open)"]
