from pathlib import Path

import pytest
from tiny_evaluation import build_job, end_as_named

from rmat_hf.evaluation.workers import hide_places, run_jobs


def test_dying_and_failing_processes_are_reported_and_others_go_on(tmp_path: Path) -> None:
    jobs = [build_job(tmp_path, method) for method in ("die", "fail", "good")]
    lines: list[str] = []
    failures = run_jobs(jobs, num_proc=2, report_progress=lines.append, run=end_as_named)
    assert {job.method for job in failures} == {"die", "fail"}
    assert "killed by signal 9" in failures[jobs[0]]
    # without the folder, which tells about the machine
    assert failures[jobs[1]] == "ValueError: Row 3 of table.csv is bad."
    assert jobs[2].is_finished
    assert [job.log_file.exists() for job in jobs] == [True, True, False]
    assert sorted(lines) == [
        "Failed: die, numbers, part_0, seed 0",
        "Failed: fail, numbers, part_0, seed 0",
        "Finished: good, numbers, part_0, seed 0",
    ]


def test_finished_jobs_are_not_run_again(tmp_path: Path) -> None:
    jobs = [build_job(tmp_path, method) for method in ("good", "fail")]
    lines: list[str] = []
    options = {"num_proc": 0, "report_progress": lines.append, "run": end_as_named}
    for _ in range(2):
        failures = run_jobs(jobs, **options)  # type: ignore[arg-type]  # a dict of options
        assert failures == {jobs[1]: "ValueError: Row 3 of table.csv is bad."}
    assert lines.count("Finished: good, numbers, part_0, seed 0") == 1
    assert "1 of 2 runs are there already." in lines


@pytest.mark.parametrize(
    ("reason", "hidden"),
    [
        ("Row 3 of {folder}/table.csv is bad.", "Row 3 of table.csv is bad."),
        ("Row 3 of {folder}/runs/x/table.csv is bad.", "Row 3 of table.csv is bad."),
        ("No model '{folder}/some model'.", "No model 'some model'."),
        ("No model '/data/my models/a'; see /opt/b.", "No model 'a'; see b."),
        ("No https://me:secret@host/a/b.", "No https://***@host/a/b."),
        ("SMILES C/C=C/C, 3/4 of chemist/model", "SMILES C/C=C/C, 3/4 of chemist/model"),
    ],
)
def test_a_reason_names_files_but_no_folder_and_no_password(
    reason: str, hidden: str, tmp_path: Path
) -> None:
    folder = tmp_path / "with a space"
    assert hide_places(reason.format(folder=folder), build_job(folder, "x")) == hidden
