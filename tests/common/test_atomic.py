"""Files are whole or absent: full disks, deaths and two writers."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_selmix.common.atomic import beside, replaced, write_atomically

WRITE = """
import sys
from pathlib import Path
from ssl_selmix.common.atomic import write_atomically
for _ in range(40):
    write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 50_000)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(type(error)) as told, replaced(path) as file:
        file.write(b"half of the n")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]
    if isinstance(told.value, OSError):
        assert told.value.filename == str(path)


def test_two_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    words = [sys.executable, "-c", WRITE, str(path)]
    writers = [subprocess.Popen([*words, letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    content = path.read_bytes()
    assert content in (b"a" * 50_000, b"b" * 50_000) and names(tmp_path) == ["file"]


def test_a_folder_beside_goes_with_what_a_killed_process_left_in_it(tmp_path: Path) -> None:
    path = tmp_path / "model"
    (tmp_path / ".model.making").mkdir()
    (tmp_path / ".model.making" / "left").write_text("")
    with beside(path) as folder:
        assert names(folder) == []
        (folder / "model").write_text("new")
        (folder / "model").replace(path)
    assert names(tmp_path) == ["model"]
    with pytest.raises(OSError) as told, beside(path) as folder:
        (folder / "model").write_text("half")
        raise OSError(errno.ENOSPC, "full", str(folder / "model"))
    assert told.value.filename == str(path)
    assert names(tmp_path) == ["model"] and path.read_text() == "new"
