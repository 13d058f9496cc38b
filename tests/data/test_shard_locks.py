import subprocess
import sys
from pathlib import Path

import pytest

from rmat_hf.data.shard_locks import ShardLocks
from rmat_hf.errors import UserError

HOLD = """
import fcntl, sys
stream = open(sys.argv[1], "rb+")
fcntl.lockf(stream, fcntl.LOCK_EX, 1, 3)
print("locked", flush=True)
sys.stdin.read()
"""


def test_shard_that_another_process_writes_is_refused_until_it_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "screen.json"
    path.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with ShardLocks(path) as locks:
            locks.lock(2)
            with pytest.raises(UserError, match="Another run is writing"):
                locks.lock(3)
            process.kill()
            process.wait()
            locks.lock(3)
    assert path.read_bytes() == b""
