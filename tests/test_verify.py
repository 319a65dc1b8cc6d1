"""Committed results that were tampered with: whatever was done to them is found, and told where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import audit, campaign, verify
from bench.suite import load_suite, names

RESULTS = Path(__file__).parent.parent / "results"
ROW = "reference/plane_unsup/paper/aae"
Captured = pytest.CaptureFixture[str]
Tamper = Callable[[Path], object]


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of one suite's records and table, which pass for everything that is committed."""
    folder = tmp_path_factory.mktemp("untouched") / "results"
    shutil.copytree(RESULTS / "reference" / "plane_unsup", folder / "reference" / "plane_unsup")
    for name in ("plane_unsup.md", "speed.md", "speed.json"):
        shutil.copy(RESULTS / name, folder)
    (folder / "coverage.md").write_text(campaign.page(campaign.ordered(), [folder / "reference"]), encoding="utf-8")
    sealed(folder)
    return folder


@pytest.fixture
def results(untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `untouched` for a test to tamper with."""
    folder = shutil.copytree(untouched, tmp_path / "results")
    monkeypatch.setattr(verify, "OURS", ("plane_unsup",))
    monkeypatch.setattr(verify, "TABLES", {})
    monkeypatch.setattr(audit.provenance, "committed", lambda *_: False)  # whatever history there is around the tests
    return folder


def sealed(results: Path) -> None:
    """As after a change that its author also entered in the list of sums."""
    lines = (f"{digest}  {name}\n" for name, digest in verify.sums(results).items())
    (results / verify.SUMS).write_text("".join(lines))


def found(results: Path) -> list[str]:
    return list(verify.findings(results))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def of(number: int) -> Callable[[Path], Path]:
    return lambda results: results / ROW / f"seed{number:02d}.json"


def edited(change: Callable[[dict[str, Any]], object]) -> Tamper:
    return lambda results: edit(of(3)(results), change)


def everywhere(value: dict[str, Any], score: float) -> None:
    """Another score, consistently at every place where it stands."""
    for point in (value["result"][at] for at in ("last", "selected", "best_on_test")):
        point["test"]["majority"] = score
    for point in value["result"]["curve"]:
        point["test"]["majority"] = score


def swap(results: Path) -> None:
    one, two = of(1)(results), of(2)(results)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def reworded(old: str, new: str) -> Tamper:
    def act(results: Path) -> None:
        path = results / "plane_unsup.md"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return act


def cut(results: Path) -> None:
    of(3)(results).write_bytes(of(3)(results).read_bytes()[:-40])


WRONG: dict[str, tuple[Tamper, str]] = {
    "a score": (edited(lambda v: v["result"]["last"]["test"].update(majority=1.0)), "scores at its last step"),
    "a score everywhere": (edited(lambda v: everywhere(v, 1.0)), "plane_unsup.md: is not what the records give"),
    "a selected step": (edited(lambda v: v["result"]["selected"].update(step=1)), "scores at its selected step"),
    "a cell of the table": (reworded("0.35 ± 0.94", "0.35 ± 0.44"), "is not what the records give"),
    "a note of the table": (reworded("3,000 steps", "2,000 steps"), "is not what the records give"),
    "no table": (lambda results: (results / "plane_unsup.md").unlink(), "is not what the records give"),
    "a record less": (lambda results: of(3)(results).unlink(), "is not what the records give"),
    "a copy under another seed": (lambda r: shutil.copy(of(3)(r), of(4)(r)), "holds the trial of"),
    "a copy under a new seed": (lambda r: shutil.copy(of(3)(r), of(10)(r)), "has the same trial as"),
    "another name": (lambda r: of(3)(r).rename(of(3)(r).with_name("seed3.json")), "holds the trial of"),
    "another ending": (lambda r: of(3)(r).rename(of(3)(r).with_suffix(".txt")), "holds the trial of"),
    "a digest": (edited(lambda v: v.update(digest="0" * 64)), "does not match its digest"),
    "a seed": (edited(lambda v: v["trial"].update(seed=4)), "does not match its digest"),
    "two records swapped": (swap, "holds the trial of"),
    "a record cut": (cut, "is not JSON"),
    "an empty record": (lambda r: of(3)(r).write_bytes(b""), "is not JSON"),
    "an unknown file": (lambda r: (r / ROW / "notes.txt").write_text("x"), "is not JSON"),
    "an unknown table": (lambda r: (r / "table9.md").write_text("x"), "nothing makes this file"),
    "other code": (edited(lambda v: v["run"]["git"].update(sha="b" * 40)), "is not what the records give"),
    "dirty code": (edited(lambda v: v["run"]["git"].update(dirty=True)), "by code that was not committed"),
    "no code": (edited(lambda v: v["run"].update(git=None)), "does not name the code"),
    "no versions": (edited(lambda v: v["run"].update(versions={})), "does not name the versions"),
    "no device": (edited(lambda v: v["run"].pop("device")), "does not tell its device"),
    "another precision": (edited(lambda v: v["run"].update(precision="bf16")), "was computed in bf16"),
    "other data": (edited(lambda v: v["data"].update(digest="a" * 64)), "has another data than"),
    "another split": (edited(lambda v: v["data"].update(split_digest="a" * 64)), "has another split than"),
    "data of another name": (edited(lambda v: v["data"].update(name="digits")), "is of the data digits"),
    "no digest of weights": (
        edited(lambda v: v["result"].update(weights_sha256="1")),
        "no digest of its final weights",
    ),
    "fewer steps": (edited(lambda v: v["result"].update(step=3)), "is done at step 3 of"),
    "another schema": (edited(lambda v: v.update(schema=2)), "has schema 2"),
    "another key": (edited(lambda v: v.update(extra=2)), "holds the unknown 'extra'"),
    "no curve": (edited(lambda v: v["result"].pop("curve")), "is not made as a record is (KeyError: 'curve')"),
    "a curve of another kind": (edited(lambda v: v["result"].update(curve=[1])), "that is no list of scorings"),
    "a curve of other points": (edited(lambda v: v["result"].update(curve=[{}])), "that is no list of scorings"),
    "counts beyond all bounds": (
        edited(lambda v: v["result"].update(confusion={"predict": [[10**14]]})),
        "more counts of cluster by class than the data have examples",
    ),
    "a count beyond all integers": (
        edited(lambda v: v["result"].update(confusion={"predict": [[10**30]]})),
        "more counts of cluster by class than the data have examples",
    ),
    "no time": (edited(lambda v: v["run"].pop("seconds")), "does not tell its seconds"),
    "a score that is text": (edited(lambda v: v["result"]["last"]["test"].update(ari="1")), "which is no score"),
    "a speed": (lambda r: edit(r / "speed.json", lambda v: v["rows"].pop()), "speed.md: is not what the records give"),
}


def same_weights(results: Path) -> None:
    weights = json.loads(of(2)(results).read_bytes())["result"]["weights_sha256"]
    edit(of(3)(results), lambda value: value["result"].update(weights_sha256=weights))


WRONG["the same weights twice"] = (same_weights, "has the same final weights as")


@pytest.mark.fault(19, 21, 22)
@pytest.mark.parametrize("what", WRONG)
def test_what_was_tampered_with_is_found_although_its_sum_was_changed_too(results: Path, what: str) -> None:
    tamper, words = WRONG[what]
    tamper(results)
    sealed(results)
    lines = found(results)
    assert any(words in line for line in lines), lines
    assert all(str(results) in line and "\n" not in line for line in lines)


def test_another_split_may_have_another_test_set() -> None:
    paths = [
        RESULTS / "reference" / of / "seed00.json" for of in ("mnist_unsup/quick/lalnets", "mnist_whole/paper/kmeans")
    ]
    records = {path: json.loads(path.read_bytes()) for path in paths}
    assert list(audit._about_pairs(records)) == []
    for record in records.values():
        record["trial"]["split"] = "random"
    assert any("has another classes of the test set than" in line for line in audit._about_pairs(records))


def test_any_other_byte_is_found_by_its_sum(results: Path) -> None:
    path = of(3)(results)
    weights = json.loads(path.read_bytes())["result"]["weights_sha256"]
    path.write_bytes(path.read_bytes().replace(weights.encode(), b"a" * 64))  # which only training again could show
    of(4)(results).unlink()
    shutil.copy(of(5)(results), results / ROW / "seed11.json")
    lines = found(results)
    assert any(f"{path}: was changed, by SHA256SUMS" in line for line in lines)
    assert any(f"{of(4)(results)}: is missing, by SHA256SUMS" in line for line in lines)
    assert any("seed11.json: is not listed, by SHA256SUMS" in line for line in lines)


def test_counts_that_contradict_the_scores_are_found() -> None:
    counts, scores = [[5, 1], [0, 4]], {"majority": 10.0, "hungarian": 10.0, "live": 2}
    assert {key: audit.scores_of(counts, "clustering")[key] for key in scores} == scores
    assert audit.scores_of(counts, "classification") == {"error": 10.0}
    path = next((RESULTS / "reference" / "digits_semi" / "paper" / "samm").glob("*.json"))
    record = json.loads(path.read_bytes())
    trial = audit.Trial.from_json(record["trial"])
    assert not list(audit.about_result(record["result"], trial, "done"))
    record["result"]["confusion"]["bayes"][0][0] += 1
    assert any("has the score bayes_error" in line for line in audit.about_result(record["result"], trial, "done"))


def test_what_is_untouched_is_true_and_is_written_as_it_was(results: Path, capsys: Captured) -> None:
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert verify.main(["--results", str(results)]) == 0
    assert capsys.readouterr().out == "all committed records and tables are what they say\n"
    (results / "report.md").write_text("of `make report`, which is nobody's but its reader's")
    assert verify.main(["--results", str(results)]) == 0
    (results / "report.md").unlink()
    (results / "plane_unsup.md").write_text("old")
    assert verify.main(["--results", str(results)]) == 1
    assert verify.main(["--results", str(results), "--write"]) == 0
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", [None, "[]", "{", '{"rows": [], "overhead": []}'])
def test_a_table_that_cannot_be_made_leaves_all_as_they_were(
    results: Path, capsys: Captured, content: str | None
) -> None:
    (results / "plane_unsup.md").write_text("old")
    (results / "speed.json").unlink()
    if content is not None:
        (results / "speed.json").write_text(content)
    assert verify.main(["--results", str(results), "--write"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {results / 'speed.json'}: ")
    assert (results / "plane_unsup.md").read_text() == "old"


def test_a_file_that_cannot_be_read_is_one_line(results: Path, capsys: Captured) -> None:
    (of(2)(results).with_name("seed99.json")).symlink_to("nowhere")
    for option in ([], ["--write"]):
        assert verify.main(["--results", str(results), *option]) == 2
        *_, said = capsys.readouterr().err.splitlines()
        assert (
            said.startswith("error: ")
            and "seed99.json: cannot be read (No such file or directory); mend that, or move it away" in said
        )


def test_the_readme_and_the_pages_of_studies_show_what_the_records_give(results: Path, capsys: Captured) -> None:
    root = results.parent
    (root / "docs").mkdir()
    (root / "docs/plane_unsup.md").write_text("old")  # any suite with records can have a page
    (root / "docs/faq.md").write_text("no suite, so nobody's page")
    (root / "README.md").write_text("before\n<!-- table plane_unsup -->\nold\n<!-- end -->\nafter\n")
    assert verify.main(["--results", str(results)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].removeprefix(f"{results}/") for line in said] == [
        "../docs/plane_unsup.md",
        "../README.md",
    ]
    assert verify.main(["--results", str(results), "--write"]) == 0
    text = (root / "README.md").read_text()
    assert text.startswith("before\n<!-- table plane_unsup -->\n\n| Model") and text.endswith("\n<!-- end -->\nafter\n")
    (line,) = (line for line in text.splitlines() if line.startswith("| AAE"))
    whole = next(line for line in (results / "plane_unsup.md").read_text().splitlines() if line.startswith("| AAE"))
    assert line.split("|")[4].strip() == whole.split("|")[4].strip()
    assert "## Six Gaussians" in (root / "docs/plane_unsup.md").read_text()


def test_a_folder_without_results_is_bad_input(tmp_path: Path, capsys: Captured) -> None:
    assert verify.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_every_suite_with_records_has_its_table() -> None:
    shown = {suite for suites in verify.TABLES.values() for suite in suites} | set(verify.OURS)
    studies = {name for name in names() if load_suite(name).metric.startswith("validation.")}  # pages of bench.study
    assert {path.name for path in (RESULTS / "reference").iterdir()} - studies <= shown <= set(names())
