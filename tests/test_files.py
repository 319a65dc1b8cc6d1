"""Files are whole or not there, whatever fails in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from bench import files
from bench.errors import UserError
from bench.files import write_atomic, write_output


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_content_is_written_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_atomic(path, b"one")
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    write_atomic(path, b"\x00\n" * 10_000)
    assert path.read_bytes() == b"\x00\n" * 10_000
    assert os.listdir(path.parent) == ["file.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, call, _full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.fault(9)
def test_a_real_full_disk_is_met_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, b"old")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    opened = Path.open

    def redirected(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        return opened(Path("/dev/full"), "wb") if self.suffix == ".part" else opened(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", redirected)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new" * 100_000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.fault(10)
def test_a_stale_part_of_a_dead_run_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    stale = tmp_path / f".file.json.{os.getpid()}.part"
    stale.write_bytes(b"half")
    write_atomic(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert stale.read_bytes() == b"half"


def test_a_name_below_a_file_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OSError):
        write_atomic(tmp_path / "file" / "record.json", b"new")
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_text_that_no_file_can_hold_is_written_as_its_escape(tmp_path: Path) -> None:
    write_output(tmp_path / "table.md", "a \ud800 b")  # as json.loads may give it
    assert (tmp_path / "table.md").read_bytes() == b"a \\ud800 b"


def test_endings_are_added_to_a_name_with_a_point_in_it(tmp_path: Path) -> None:
    files.require_stem(tmp_path / "v1.2")
    assert files.ended(tmp_path / "v1.2", ".md") == tmp_path / "v1.2.md"
    for ending in files.ENDINGS:
        with pytest.raises(UserError, match=f"give the name without {ending}$"):
            files.require_stem(tmp_path / f"page{ending}")


def test_an_output_never_takes_the_place_of_a_device(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=r"cannot write .*pipe \(not a regular file\); choose another file"):
        write_output(pipe, "text")
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_an_output_goes_where_its_link_leads(tmp_path: Path) -> None:
    there = tmp_path / "folder" / "table.md"
    there.parent.mkdir()
    link = tmp_path / "link.md"
    link.symlink_to(there)
    for text in ("one", "two"):
        write_output(link, text)
        assert link.is_symlink() and there.read_text() == text


def test_files_are_found_by_name_and_what_is_not_there_is_none(tmp_path: Path) -> None:
    for name in ("b/seed01.json", "a/seed00.json", "a/deep/seed02.json", "a/seed00.log"):
        files.write_atomic(tmp_path / name, b"")
    named = [path.relative_to(tmp_path).as_posix() for path in files.below(tmp_path, "seed*.json")]
    assert named == ["a/deep/seed02.json", "a/seed00.json", "b/seed01.json"]
    assert [path.name for path in files.listed(tmp_path / "a", "seed*")] == ["seed00.json", "seed00.log"]
    for nothing in (tmp_path / "none", tmp_path / "a/seed00.log"):
        assert files.below(nothing, "*") == files.listed(nothing) == []


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    far, root = tmp_path / "far", tmp_path / "root"
    for folder in (far, root):
        (folder / "in").mkdir(parents=True)
        (folder / "in" / "seed00.json").touch()
    (root / "linked").symlink_to(far)
    (far / "round").symlink_to(root)
    assert files.below(root, "seed*") == [root / "in/seed00.json", root / "linked/in/seed00.json"]


@pytest.mark.parametrize("find", [files.listed, files.below])
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, find: Any) -> None:
    """A link to itself, since permissions do not bind an administrator."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"loop: cannot be read \(Too many levels of symbolic links\); mend that"):
        find(tmp_path / "loop", "seed*")
