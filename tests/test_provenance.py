"""Which code made a number: a digest of the sources, and the commit that holds them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import provenance


def _git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit."""
    for package in provenance.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("1\n")
    _git(tmp_path, "init", "-q")
    _commit(tmp_path)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def _commit(folder: Path) -> None:
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", "x")


def test_a_changed_tree_is_dirty_and_is_found_again_once_it_is_committed(checkout: Path) -> None:
    before = provenance.code.__wrapped__()
    assert before["sha"] == _git(checkout, "rev-parse", "HEAD") and before["dirty"] is False
    (checkout / "models" / "b.py").write_text("2\n")
    changed = provenance.code.__wrapped__()
    assert changed["sha"] == before["sha"] and changed["dirty"] is True and changed["sources"] != before["sources"]
    known = changed["sources"], changed["sha"]
    assert provenance.committed.__wrapped__(*known) is False
    _commit(checkout)
    (checkout / "README.md").write_text("not a source\n")
    _commit(checkout)
    (checkout / "models" / "b.py").write_text("3\n")
    _commit(checkout)
    assert provenance.committed.__wrapped__(*known) is True
    assert (
        provenance.committed.__wrapped__(before["sources"], before["sha"]) is False
    )  # no later commit has those again
    assert provenance.committed.__wrapped__(changed["sources"], "0" * 40) is None


@pytest.mark.fault(22)
def test_a_process_knows_that_its_sources_changed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.code.__wrapped__()
    monkeypatch.setattr(provenance, "code", lambda: before)
    (checkout / "models" / ".#a.py").symlink_to("user@host")  # an editor's lock, which is no source
    (checkout / "README.md").write_text("not a source\n")
    assert not provenance.changed()
    (checkout / "models" / "a.py").write_text("2\n")
    assert provenance.changed()
    (checkout / "models" / "a.py").write_text("1\n")
    assert not provenance.changed()
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(FileNotFoundError(str(self))))
    assert provenance.changed()  # as in the middle of a checkout


def test_another_repository_says_nothing_of_our_commits(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = provenance.code.__wrapped__()
    other = checkout / "other"
    other.mkdir()
    _git(other, "init", "-q")
    (other / "a").write_text("1")
    _commit(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook of the other one
    assert provenance.code.__wrapped__() == ours
    monkeypatch.delenv("GIT_DIR")
    for package in provenance.PACKAGES:
        (checkout / "inside" / package).mkdir(parents=True)
    monkeypatch.setattr(
        provenance, "ROOT", checkout / "inside"
    )  # a copy without git in a folder of somebody's repository
    found = provenance.code.__wrapped__()
    assert found["sha"] is None and found["dirty"] is None


def test_without_git_nothing_is_known_of_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = provenance.code.__wrapped__()
    assert found["sha"] is None and found["dirty"] is None and len(found["sources"]) == 64
    assert provenance.committed.__wrapped__(found["sources"], "0" * 40) is None
