"""The order of a campaign, what it carries away, and what it refuses to bring home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import campaign, record
from bench.cli import closed
from bench.dispatch import Dispatcher
from bench.errors import UserError
from bench.suite import Trial


@pytest.fixture(scope="module")
def found() -> list[Trial]:
    return campaign.ordered()


def test_the_papers_cells_come_first_then_rivals_by_arithmetic_then_the_other_seeds(found: list[Trial]) -> None:
    names = [(trial.suite, trial.row, trial.seed) for trial in found]
    assert names[:3] == [("mnist_unsup", "amm_k10_works", seed) for seed in range(3)]
    heads = list(dict.fromkeys(name[:2] for name in names))[: len(campaign.HEADLINE)]
    assert tuple(heads) == campaign.HEADLINE
    early = [trial for trial in found if trial.seed < 3]
    assert found[: len(early)] == early
    rivals = [t for t in early if (t.suite, t.row) not in campaign.HEADLINE]
    without_steps = "KMeans", "Mixture", "Spectral"
    floors = [t for t in rivals if t.method.partition(":")[2] in without_steps]
    assert len(floors) == 3 * 15 and rivals[:45] == floors
    costs = [t.steps * t.batch * (784 if t.data == "mnist" else 3072) for t in rivals[45:]]
    assert costs == sorted(costs)
    assert len(set(names)) == len(names) and {t.suite for t in found} == set(campaign.SUITES)
    assert {t.suite for t in campaign.ordered(["svhn_semi"])} == {"svhn_semi"}


def test_what_has_a_result_anywhere_is_left_out(store: Callable[..., Path], found: list[Trial], tmp_path: Path) -> None:
    store(tmp_path / "a", found[0])
    store(tmp_path / "b", found[1])
    store(tmp_path / "b", found[2], "interrupted")
    roots = (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert campaign.run.unfinished(found[:4], *roots) == found[2:4]
    assert campaign.left(found[:4], roots)["mnist_unsup", "amm_k10_works"] == (3, [2])


def test_a_page_counts_rows_and_names_the_command_of_what_is_left(
    store: Callable[..., Path], found: list[Trial], tmp_path: Path
) -> None:
    some = [trial for trial in found if trial.row in ("kmeans", "mixture", "infogan", "amm_k10")]
    some = [trial for trial in some if trial.suite == "mnist_unsup"]
    there = {"kmeans": range(10), "mixture": (0, 1, 2, 5), "infogan": (4,)}
    for trial in some:
        if trial.seed in there.get(trial.row, ()):
            store(tmp_path, trial, "diverged" if trial.seed == 2 else "done")
    text = campaign.page(some, [tmp_path])
    assert "4 rows: 1 full, 1 more with the 3 trials that allow a verdict, 1 with fewer, 1 with none." in text
    rows = {cells[2]: cells for cells in (line.split("|") for line in text.splitlines()) if len(cells) == 8}
    cells = {row.strip(): [cell.strip() for cell in line[3:7]] for row, line in rows.items()}
    assert cells["kmeans"] == ["10 of 10", "6 min, 2 cores", "", ""]
    command = "`python -m bench.run --suite mnist_unsup --only {} --seeds {}`"
    assert cells["mixture"] == ["4 of 10", "4 min, 2 cores", "18 min, 2 cores", command.format("mixture", "3-4,6-9")]
    assert cells["infogan"] == ["1 of 10", "6 min, 2 cores", "54 min, 2 cores", command.format("infogan", "0-3,5-9")]
    assert cells["amm_k10"] == ["0 of 10", "", "", command.format("amm_k10", "0-9")]


def test_plan_and_run_as_commands(
    store: Callable[..., Path],
    found: list[Trial],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = ["--out", str(tmp_path / "out"), "--home", str(tmp_path / "home"), "--reference", str(tmp_path / "ref")]
    store(tmp_path / "ref", found[0])
    assert campaign.main(["--plan", "--suite", "mnist_unsup", *where]) == 0
    said = capsys.readouterr().out
    assert "| 1 of 10   | 2 min, 2 cores | 18 min, 2 cores  | `python -m bench.run --suite mnist_unsup " in said
    assert " --only amm_k10_works --seeds 1-9`" in said
    for stops in (["--plan"], ["--merge", str(tmp_path)]):
        assert campaign.main([*stops, *where[2:], "--time-budget", "9m"]) == 2
        assert capsys.readouterr().err == f"error: --time-budget: {stops[0]} does not read it; remove it\n"
    monkeypatch.setattr(campaign.run, "execute", lambda *_, **__: 0)
    assert campaign.main([*where, "--dry-run"]) == 0 and not (tmp_path / "out").exists()  # it packs nothing
    asked: list[list[Trial]] = []

    def execute(trials: list[Trial], options: Any, partly: bool, elsewhere: Sequence[Path]) -> int:
        asked.append(campaign.run.unfinished(trials, options.out, *elsewhere))
        assert options.time_budget == "9m" and options.out == tmp_path / "out"
        store(options.out, asked[-1][0])
        return 3

    monkeypatch.setattr(campaign.run, "execute", execute)
    assert campaign.main([*where, "--time-budget", "9m"]) == 3
    assert asked[0][:2] == found[1:3] and (tmp_path / "out/campaign.tar.000").exists()
    assert campaign.main(["--merge", str(tmp_path / "out"), *where[2:]]) == 0
    assert record.record_path(tmp_path / "home", replace(found[1])).exists()


def test_a_campaign_runs_what_has_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, there, ran = tmp_path / "out", {"mnist"}, list[set[str]]()
    where = ["--home", str(tmp_path / "home"), "--reference", str(tmp_path), "--device", "cpu", "--out"]
    two = [campaign.ordered([suite])[0] for suite in ("mnist_unsup", "svhn_unsup")]

    def load(trial: Trial, noise: object, root: object) -> None:
        if trial.data not in there:
            raise UserError(f"{trial.data} is nowhere")

    def dispatch(dispatcher: Dispatcher, trials: list[Trial]) -> Counter[str]:
        ran.append({trial.data for trial in trials})
        for trial in trials:
            record.write(record.record_path(dispatcher.plan.out, trial), record.new_record(trial, "done", None, {}))
        return Counter(done=len(trials))

    monkeypatch.setattr(campaign, "ordered", lambda only: two)
    monkeypatch.setattr("bench.data.load_for", load)
    monkeypatch.setattr(Dispatcher, "run", dispatch)
    assert campaign.main([*where, str(out)]) == 3
    left_out, counted = capsys.readouterr().err.splitlines()
    assert left_out == "svhn is left out: svhn is nowhere" and counted.endswith("0 had a result before")
    there.add("svhn")
    assert campaign.main([*where, str(out)]) == 0 and ran == [{"mnist"}, {"svhn"}]
    there.clear()
    capsys.readouterr()
    empty = tmp_path / "empty"
    assert campaign.main([*where, str(empty)]) == 2 and capsys.readouterr().err == "error: mnist is nowhere\n"
    assert len(ran) == 2 and not (empty / "campaign.tar.000").exists()


def test_a_campaign_packs_what_it_has_whatever_ends_it(
    store: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(trials: list[Trial], options: Any, **_: Any) -> int:
        store(options.out, trials[0])
        raise UserError("the file is cut")

    monkeypatch.setattr(campaign.run, "execute", execute)
    assert campaign.main(["--out", str(tmp_path / "out"), "--home", str(tmp_path / "home")]) == 2
    said = capsys.readouterr()
    assert said.err == "error: the file is cut\n" and said.out == f"{tmp_path}/out/campaign.tar.000\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["status"], "status: a campaign chooses its trials itself; python -m bench.run reads it"),
        (["list"], "list: a campaign"),
        (["--only", "kmeans"], "--only: a campaign"),
        (["--seeds", "0"], "--seeds: a campaign"),
        (["--budget", "quick"], "--budget: a campaign"),
        (["--print-commands"], "--print-commands: a campaign"),
        (["--watch", "0"], "--watch: a campaign"),
        (["--allow-mixed"], "--allow-mixed: belongs to --merge"),
        (["--merge", "there", "--plan"], "--plan: --merge does not read it; remove it"),
        (["--merge", "there", "--out", "mine"], "--out: --merge does not read it; --home says where results go"),
        (["--merge", "there", "--suite", "mnist_unsup"], "--suite: --merge does not read it; remove it"),
    ],
)
def test_what_a_campaign_would_pass_over_is_refused(
    given: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign.run, "execute", lambda *_, **__: pytest.fail("it ran"))
    assert campaign.main(given) == 2
    found = capsys.readouterr()
    assert found.err.startswith(f"error: {said}") and found.err.count("\n") == 1 and not found.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", ["ordered", "packed", "merge"])
def test_ctrl_c_ends_it_as_it_ends_a_run(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "ordered", lambda *_: [])
    monkeypatch.setattr(campaign.run, "execute", lambda *_, **__: 0)
    monkeypatch.setattr(campaign, at, stopped)
    assert closed(lambda: campaign.main(["--merge" if at == "merge" else "--out", str(tmp_path)])) == 130


def test_a_trial_that_shared_a_gpu_says_with_how_many() -> None:
    alone = {"seconds": 60.0, "threads": 1, "device": "cuda", "device_name": "a GPU", "shared_by": 1}
    records = [{"run": alone}, {"run": alone | {"shared_by": 13}}]
    assert campaign._took(records) == "60 s, a GPU, a GPU with 13 at once"


def test_what_the_rest_takes_follows_from_shorter_trials_and_the_fastest_machine(found: list[Trial]) -> None:
    trial = replace(found[0], steps=1000, batch=100)
    run = {"seconds": 600.0, "threads": 1, "device": "cpu", "device_name": "a CPU", "shared_by": 1}
    on_cpu = {
        "status": "done",
        "run": run,
        "result": {"steps": 100},
        "trial": {"batch": 50},
    }  # a twentieth of the examples
    gpu = run | {"device": "cuda", "device_name": "a GPU", "shared_by": 10}
    on_gpu = on_cpu | {"run": gpu, "result": {"steps": 1000}, "trial": {"batch": 100}}
    failed = on_cpu | {"status": "failed", "run": run | {"seconds": 1.0}, "result": None}
    assert campaign._rest(trial, 3, [on_cpu, failed]) == "10.0 h, 1 core"
    assert campaign._rest(trial, 3, [on_cpu, on_gpu]) == "3 min, a GPU with 10 at once"
    assert campaign._rest(trial, 3, [on_cpu | {"result": {"steps": 0}}]) == "30 min, 1 core"  # it takes no steps
    assert campaign._rest(trial, 0, [on_cpu]) == campaign._rest(trial, 3, [failed]) == ""
