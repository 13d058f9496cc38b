from pathlib import Path

import pytest
from processes import run_python

from rmat_hf.data.datatrove_tasks import run_tasks

RUN = """
import sys
from pathlib import Path
from rmat_hf.data.datatrove_tasks import run_tasks

folder = Path(sys.argv[1])

class WriteRank:
    def __call__(self, data, rank=0, world_size=1):
        (folder / f"{rank} of {world_size}").touch()

class ListFiles:
    def __call__(self, data, rank=0, world_size=1):
        names = sorted(path.name for path in folder.iterdir())
        (folder / "list").write_text(", ".join(names))

run_tasks(
    [("ranks", WriteRank(), 2), ("list", ListFiles(), 1)],
    logging_dir=sys.argv[2], executor_options={"workers": 1},
)
"""


@pytest.mark.slow
def test_steps_follow_each_other_as_tasks(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    (tmp_path / "out").mkdir()
    # a process of its own: datatrove stays out of the modules of this one
    done = run_python(["-c", RUN, tmp_path / "out", tmp_path / "logs"], folder=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "out" / "list").read_text() == "0 of 2, 1 of 2"


def test_unknown_executor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"executor is 'cloud'\. Choose one of"):
        run_tasks([], logging_dir=str(tmp_path), executor="cloud")  # type: ignore[arg-type]
