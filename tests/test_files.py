"""What a file is written over, and what is left alone. Failures of the disk are in test_policy_file.py."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from varsearch.errors import OutputError
from varsearch.files import write_atomically


def make_device(path: Path) -> None:
    if os.getuid():
        pytest.skip("only root makes devices")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, make_device])
@pytest.mark.parametrize("link", [False, True], ids=["itself", "through a link"])
def test_only_regular_files_are_replaced(make: Callable[[Path], None], link: bool, tmp_path: Path) -> None:
    special, path = tmp_path / "special", tmp_path / "link"
    make(special)
    path.symlink_to(special)
    mode = special.stat().st_mode
    with pytest.raises(OutputError, match="no regular file"):
        write_atomically(path if link else special, "new")
    assert special.stat().st_mode == mode and path.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("old", ["old", None], ids=["to a file", "dangling"])
def test_links_are_followed(old: str | None, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, path = tmp_path / "folder" / "target", tmp_path / "link"
    if old:
        target.write_text(old)
    path.symlink_to(target)
    write_atomically(path, "new")
    assert path.is_symlink() and target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_a_link_to_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=r"cannot write .*loop: Too many levels"):
        write_atomically(tmp_path / "loop", "new")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "p.json", "new")
    assert list(tmp_path.iterdir()) == []
