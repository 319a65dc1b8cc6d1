"""How a step is executed: its precision, which changes a trial, and eager or as a graph, which must not by a single bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_conformance import METHODS, NETS, _config
from torch import Tensor, nn

from bench import checkpoint, engine, trainer
from bench.data import Dataset
from bench.engine import TIMED, WARM_UP, Engine, require_layout, set_precision
from bench.errors import UserError
from bench.methods import method_class
from bench.plan import trials
from bench.recording import Recording
from bench.sources import SOURCES
from bench.suite import Precision, Trial, load_suite, names
from bench.tape import Tape
from bench.trainer import Run, weights_digest
from models.method import Data, Spec
from models.noise import Noise

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def flags() -> Iterator[Callable[[], tuple[str, str]]]:
    """What float32 products are computed in: matrix products, convolutions. Put back after the test."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "tf32"
    yield lambda: (matmul.fp32_precision, conv.fp32_precision)
    matmul.fp32_precision, conv.fp32_precision = before


def test_fp32_is_asked_for_and_changes_no_step(flags: Callable[[], tuple[str, str]]) -> None:
    context = set_precision("fp32", CPU)
    assert flags() == ("ieee", "ieee")
    with context:
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_runs_products_in_bfloat16_and_leaves_everything_else(flags: Callable[[], tuple[str, str]]) -> None:
    context, net, x = set_precision("bf16", CPU), nn.Linear(4, 3), torch.rand(2, 4)
    assert flags() == ("ieee", "ieee")  # what autocast leaves alone is not rounded either
    for _ in range(2):  # one context serves every step
        with context:
            out = net(x)
            loss = nn.functional.cross_entropy(out, torch.tensor([0, 1]))
        assert (out.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
        assert not torch.is_autocast_enabled("cpu")
    loss.backward()
    assert net.weight.dtype == torch.float32 and net.weight.grad is not None and net.weight.grad.dtype == torch.float32


def test_tf32_without_a_gpu_is_refused_in_one_line_and_nothing_is_set(flags: Callable[[], tuple[str, str]]) -> None:
    set_precision("fp32", CPU)
    with pytest.raises(UserError, match="^precision: tf32 needs a GPU, the device is cpu; use fp32 or bf16$"):
        set_precision("tf32", CPU)
    assert flags() == ("ieee", "ieee")


def test_tf32_is_for_a_gpu_and_the_next_trial_of_the_process_is_fp32_again(
    flags: Callable[[], tuple[str, str]],
) -> None:
    set_precision("fp32", CPU)
    with set_precision("tf32", torch.device("cuda")):
        assert flags() == ("tf32", "tf32")
    set_precision("fp32", CPU)
    assert flags() == ("ieee", "ieee")


def test_a_trial_in_tf32_on_a_cpu_does_not_begin(make_trial: Callable[..., Trial], toy: object) -> None:
    with pytest.raises(UserError, match="tf32 needs a GPU"):
        Run(make_trial(precision="tf32"), CPU)


# whole trials on the digits

ADVERSARIAL = {"nets": "digits", "learning_rate": 5e-4, "d_learning_rate": 1e-3, "init_std": 0.1}
DIGITS = {"data": "digits", "validation": 1000, "batch": 20, "steps": 4, "validate": 4}


def _trial(
    make_trial: Callable[..., Trial], precision: Precision, method: str = "models.amm:AMM", **config: Any
) -> Trial:
    full = asdict(method_class(method).Config(**{**ADVERSARIAL, **config}))
    task = "classification" if method.endswith("SAMM") else "clustering"
    trial: Trial = make_trial(**DIGITS, labels=60, task=task, precision=precision)
    return replace(trial, method=method, config=full)


def _finished(run: Run) -> Run:
    assert run.advance(lambda: False, lambda step, of: None, lambda run: None)
    return run


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("method", ["models.amm:AMM", "models.samm:SAMM"])
def test_bf16_changes_a_trial_and_keeps_weights_and_optimiser_in_fp32(
    make_trial: Callable[..., Trial], method: str, schedule: str
) -> None:
    fp32, bf16 = (
        _finished(Run(_trial(make_trial, precision, method, schedule=schedule), CPU)) for precision in ("fp32", "bf16")
    )
    for name, value in bf16.method.state_dict().items():
        other = fp32.method.state_dict()[name]
        assert value.dtype == other.dtype and (value.dtype == torch.float32 or not value.is_floating_point()), name
        assert bool(value.isfinite().all()), name
    for optimizer in bf16.method.optimizers().values():
        moments = list(_tensors(optimizer.state_dict()["state"]))
        assert moments and all(each.dtype == torch.float32 and bool(each.isfinite().all()) for each in moments)
    assert weights_digest(bf16.method) != weights_digest(fp32.method)
    losses = [run.curve[-1]["losses"] for run in (fp32, bf16)]
    assert losses[0] != losses[1]
    # bfloat16 keeps 8 bits, so four steps may not lead far away
    assert losses[1] == pytest.approx(losses[0], rel=0.1, abs=0.1)


def test_scores_are_computed_in_fp32(make_trial: Callable[..., Trial]) -> None:
    """Both runs are scored with the same weights, which bfloat16 products would answer otherwise."""
    fp32, bf16 = (Run(_trial(make_trial, precision), CPU) for precision in ("fp32", "bf16"))
    seen: list[tuple[torch.dtype, bool]] = []
    for run in (fp32, bf16):
        hook = run.method.get_submodule("encoder").register_forward_hook(
            lambda module, args, out: seen.append((out["yμ"].dtype, torch.is_autocast_enabled("cpu")))
        )
        run._score()
        hook.remove()
    assert seen and set(seen) == {(torch.float32, False)}
    assert fp32.curve == bf16.curve


def test_scores_of_a_tf32_trial_are_computed_in_fp32(
    make_trial: Callable[..., Trial], flags: Callable[[], tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where the flags change nothing, with a trial that takes it for a GPU. Instruments read in training mode."""
    monkeypatch.setattr(trainer, "set_precision", lambda precision, _: set_precision(precision, torch.device("cuda")))
    run, seen = Run(_trial(make_trial, "tf32"), CPU), []
    run.method.get_submodule("encoder").register_forward_hook(
        lambda module, *_: seen.append((module.training, flags()))
    )
    _finished(run)
    assert set(seen) == {(True, ("tf32", "tf32")), (True, ("ieee", "ieee")), (False, ("ieee", "ieee"))}
    assert [flag for training, flag in seen if training].count(("ieee", "ieee")) == 2 * len(run.curve)  # codes, answers


# autocast's cache of cast weights


def _within(context: Callable[[], AbstractContextManager[object]], part: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any) -> Any:
        with context():
            return part(*args)

    return inside


def _alternating(make_trial: Callable[..., Trial], precision: Precision) -> Run:
    return Run(_trial(make_trial, precision, schedule="alternating", d_steps=2), CPU)


def test_a_step_of_the_optimiser_amid_an_update_is_not_hidden_by_the_cache_of_autocast(
    make_trial: Callable[..., Trial],
) -> None:
    """The same trial with an autocast of its own, and so an empty cache, around each pass between two steps of an Adam."""
    apart = _alternating(make_trial, "fp32")
    for name in ("tuples", "logits", "penalty"):
        inside = _within(lambda: torch.autocast("cpu", torch.bfloat16), getattr(apart.method, name))
        setattr(apart.method, name, inside)
    expected = weights_digest(_finished(apart).method)
    assert weights_digest(_finished(_alternating(make_trial, "bf16")).method) == expected

    stale = _alternating(make_trial, "bf16")
    stale.precision = torch.autocast("cpu", torch.bfloat16)  # with its cache
    assert weights_digest(_finished(stale).method) != expected  # so the comparison can tell


# eager or as a graph: the life of an engine

EAGER = WARM_UP + TIMED  # steps before the first one that is recorded


class Game:
    """What an engine needs of a trial: a step, and the tensors that one step leaves to the next."""

    graphable = True

    def __init__(self, change: Callable[[Game], None] = lambda game: None) -> None:
        """`change` does something more in every step."""
        self.noise = Noise.seeded(3)
        self.net = nn.Linear(4, 4)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(self.noise.normal(*parameter.shape))
        self.adam = torch.optim.Adam(self.net.parameters(), 0.01, fused=True)
        self.x = self.noise.normal(8, 4)
        self.seen = torch.zeros(4)
        self.last = torch.zeros(4)  # which no step reads
        self.total = torch.zeros(())
        self.calls = 0
        self.change = change

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"adam": self.adam}

    def step(self) -> None:
        self.calls += 1
        x = self.x + self.noise.normal(8, 4)
        loss = self.net(x).square().mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.seen.lerp_(x.mean(0), 0.1)
        self.total += loss.detach()
        self.change(self)

    def state(self) -> list[Tensor]:
        moments = [value for state in self.adam.state.values() for value in state.values()]
        return [*self.net.parameters(), self.seen, self.last, self.total, *moments]

    def engine(self, mode: engine.Mode = "auto") -> Engine:
        return Engine(self, self.step, self.state, self.noise, mode)  # type: ignore[arg-type]

    def bits(self) -> list[bytes]:
        tensors = [*self.state(), self.noise.generator.get_state()]
        return [value.detach().contiguous().numpy().tobytes() for value in tensors]


def _take(game: Game, take: Engine, steps: int) -> None:
    """So many steps, each of which must be the one that a game without an engine takes."""
    alone = Game(game.change)
    for _ in range(game.calls):
        alone.step()
    assert game.bits() == alone.bits()
    for _ in range(steps):
        take()
        alone.step()
        assert game.bits() == alone.bits()


def test_the_life_of_an_engine_step_by_step() -> None:
    game, alone = Game(), Game()
    take = game.engine("graph")
    for step in range(1, EAGER + 2 + TIMED + 10):
        take()
        alone.step()
        assert game.bits() == alone.bits(), step
        assert take.name == ("eager" if step < EAGER + 2 else "graph")
        assert take.settled == (step >= EAGER + 2 + TIMED)
        assert game.calls == min(step, EAGER + 2)  # a step that is replayed is not taken by Python
    assert take.remark == "" and len(take.times["eager"]) == len(take.times["graph"]) == TIMED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Seconds as the engine sees them; a replay takes `clock.replay` of them."""
    found, play = SimpleNamespace(now=0.0, replay=0.0), Tape.__call__

    def replayed(tape: Tape) -> None:
        found.now += found.replay
        play(tape)

    monkeypatch.setattr(engine, "time", SimpleNamespace(perf_counter=lambda: found.now))
    monkeypatch.setattr(Tape, "__call__", replayed)
    return found


@pytest.mark.parametrize(
    ("mode", "replay", "name"),
    [("auto", 0.9, "graph"), ("auto", 1.1, "eager"), ("graph", 1.1, "graph"), ("eager", 0.9, "eager")],
)
def test_the_faster_way_is_taken_unless_one_was_asked_for(
    clock: Any, mode: engine.Mode, replay: float, name: str
) -> None:
    def wait(game: Game) -> None:
        clock.now += 1.0

    clock.replay = replay
    game = Game(wait)
    take = game.engine(mode)
    _take(game, take, EAGER + 2 + TIMED)
    assert (take.name, take.settled) == (name, True)
    assert take.remark == ("a replay was not faster" if (mode, name) == ("auto", "eager") else "")
    if mode == "auto":
        assert take.times == {"eager": [1.0] * TIMED, "graph": pytest.approx([replay] * TIMED)}


@pytest.mark.parametrize("graphable", [True, False])
def test_what_shall_not_or_cannot_be_recorded_never_is(graphable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    game = Game()
    game.graphable = graphable
    take = game.engine("eager" if graphable else "graph")
    monkeypatch.setattr(Recording, "__enter__", lambda self: pytest.fail("recorded"))
    for _ in range(EAGER + 5):
        take()
    assert game.calls == EAGER + 5 and (take.name, take.settled) == ("eager", True)
    assert take.remark == ("" if graphable else "Game cannot be recorded")


def _reads(game: Game) -> None:
    game.seen.mul_(0.5 if float(game.total) > 0 else 2.0)


def _counts(game: Game) -> None:
    game.total += game.calls


def _rebinds(game: Game) -> None:
    game.seen = game.seen * 0.9


def _assigns(game: Game) -> None:
    """No operation tells that the attribute is another tensor now."""
    game.last = game.net.bias.detach() * 0.9


def _alternates(game: Game) -> None:
    if game.calls % 2:
        game.seen.mul_(0.9)


def _schedules(game: Game) -> None:
    game.adam.param_groups[0]["lr"] *= 0.99


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (_reads, "aten._local_scalar_dense.default reads a value"),
        (_counts, "aten.add_.Tensor differs between two steps"),
        (_rebinds, "aten.lerp_.Scalar differs between two steps"),
        (_assigns, "it does not take the same step"),
        (_alternates, "operations in one step"),
        (_schedules, "aten._fused_adam_.default differs between two steps"),
    ],
)
def test_a_step_that_is_not_the_same_program_each_time_stays_eager_and_right(
    change: Callable[[Game], None], remark: str
) -> None:
    game = Game(change)
    take = game.engine("graph")
    _take(game, take, EAGER + 6)
    assert (take.name, take.settled, game.calls) == ("eager", True, EAGER + 6)
    assert remark in take.remark


# a recording that is wrong


def _one_call_less(patch: pytest.MonkeyPatch) -> None:
    needed = engine.Tape.__init__.__globals__["_needed"]
    patch.setitem(engine.Tape.__init__.__globals__, "_needed", lambda recording: needed(recording)[:-1])


def _another_number(patch: pytest.MonkeyPatch) -> None:
    play = Tape.__call__

    def wrong(tape: Tape) -> None:
        play(tape)
        tape.game.seen[2] += 1e-7  # type: ignore[attr-defined]

    patch.setattr(Tape, "__call__", wrong)


def _wrong_the_second_time(patch: pytest.MonkeyPatch) -> None:
    """As where a constant of the recording is written to."""
    play, times = Tape.__call__, []

    def wrong(tape: Tape) -> None:
        times.append(tape)
        play(tape)
        if len(times) > 1:
            tape.game.seen[2] += 1  # type: ignore[attr-defined]

    patch.setattr(Tape, "__call__", wrong)


def _one_draw_more(patch: pytest.MonkeyPatch) -> None:
    play = Tape.__call__

    def wrong(tape: Tape) -> None:
        play(tape)
        tape.game.noise.normal(1)  # type: ignore[attr-defined]

    patch.setattr(Tape, "__call__", wrong)


def _raises_amid(patch: pytest.MonkeyPatch) -> None:
    play = Tape.__call__

    def wrong(tape: Tape) -> None:
        play(tape)
        raise ValueError("a shape does not fit")

    patch.setattr(Tape, "__call__", wrong)


def _is_not_made(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tape, "__init__", lambda self, recording: (_ for _ in ()).throw(KeyError("a slot")))


@pytest.mark.parametrize(
    "fault", [_one_call_less, _another_number, _wrong_the_second_time, _one_draw_more, _raises_amid, _is_not_made]
)
def test_a_recording_that_is_wrong_is_caught_and_has_changed_nothing(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    game = Game()
    monkeypatch.setattr(Tape, "game", game, raising=False)
    fault(monkeypatch)
    take = game.engine("graph")
    _take(game, take, EAGER + 5)
    assert (take.name, take.settled) == ("eager", True)
    assert take.remark.startswith("the recording was not used: ")


# what moves between two steps


def _new_object(game: Game) -> None:
    game.seen = game.seen + 1


def _new_memory(game: Game) -> None:
    game.net.weight.data = game.net.weight.data * 0.5


def _new_moments(game: Game) -> None:
    game.adam.load_state_dict(deepcopy(game.adam.state_dict()))


MOVES = [_new_object, _new_memory, _new_moments]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("at", [EAGER + 1, EAGER + 2, EAGER + 4, EAGER + 2 + TIMED, EAGER + 2 + TIMED + 3])
def test_a_step_is_recorded_again_once_something_has_moved(move: Callable[[Game], None], at: int) -> None:
    """Also between the two recordings, and while a replay is being timed."""
    game, alone = Game(), Game()
    take = game.engine("graph")
    for step in range(1, at + 2 + TIMED + 2):
        take()
        alone.step()
        assert game.bits() == alone.bits(), step
        if step == at:
            move(game)
            move(alone)
            calls = game.calls
            take.forget_if_moved()
            assert (take.name, take.settled) == ("eager", False)
    assert (take.name, take.settled, take.remark) == ("graph", True, "")
    assert game.calls == calls + 2


def test_nothing_is_forgotten_while_nothing_moves() -> None:
    game = Game()
    take = game.engine("graph")
    for _ in range(EAGER + 2 + TIMED + 3):
        take()
        game.net.weight.data.mul_(0.99)  # in place
        take.forget_if_moved()
    assert take.name == "graph" and game.calls == EAGER + 2


def test_an_engine_that_has_settled_for_eager_stays_so() -> None:
    game = Game(_reads)
    take = game.engine("graph")
    _take(game, take, EAGER + 3)
    _new_object(game)
    take.forget_if_moved()
    assert take.settled and take.remark


def test_optimisers_count_where_the_device_wants_it_also_after_a_checkpoint_of_another_one() -> None:
    game = Game()
    take = game.engine("graph")
    assert [group["capturable"] for group in game.adam.param_groups] == [False]
    for _ in range(EAGER + 2):
        take()
    of_a_gpu = deepcopy(game.adam.state_dict())
    of_a_gpu["param_groups"][0]["capturable"] = True
    game.adam.load_state_dict(of_a_gpu)
    take.take_over()
    assert [group["capturable"] for group in game.adam.param_groups] == [False]
    assert take.name == "eager" and not take.settled  # the moments are other tensors now
    take.gpu = True
    take.take_over()
    assert [group["capturable"] for group in game.adam.param_groups] == [True]


# gradients that lie otherwise than their parameters


@pytest.mark.parametrize("mode", ["auto", "eager", "graph"])
@pytest.mark.parametrize("graphable", [True, False])
def test_a_fused_optimiser_with_a_transposed_gradient_is_an_error_in_the_first_step(
    mode: engine.Mode, graphable: bool
) -> None:
    weight = nn.Parameter(torch.ones(4, 3))
    weight.grad = torch.ones(3, 4).t()
    adam = torch.optim.Adam([weight], fused=True)
    method: Any = SimpleNamespace(graphable=graphable, optimizers=lambda: {"adam": adam})

    take = Engine(method, adam.step, lambda: [weight], Noise.seeded(0), mode)
    with pytest.raises(RuntimeError, match=r"shape \(4, 3\) has strides \(1, 4\), the parameter \(3, 1\)"):
        take()


def test_only_a_fused_optimiser_needs_equal_strides_and_only_where_there_is_more_than_one_element() -> None:
    weight, line, still = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(3, 4).t()
    line.grad = torch.ones(4).as_strided((4, 1, 1), (1, 4, 7))
    require_layout([torch.optim.SGD([weight]), torch.optim.Adam([weight])])
    require_layout([torch.optim.Adam([line, still], fused=True)])
    with pytest.raises(RuntimeError, match="a fused optimiser needs equal ones"):
        require_layout(
            [torch.optim.Adam([still]), torch.optim.Adam([{"params": [line]}, {"params": weight}], fused=True)]
        )


# whole trials, each way


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two eager steps, two that are recorded, and the fifth is a replay."""
    monkeypatch.setattr(engine, "WARM_UP", 1)
    monkeypatch.setattr(engine, "TIMED", 1)


def _bits(value: Any) -> Any:
    """Anything made of tensors as something whose equality is that of every bit."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bits(each) for key, each in value.items()}
    return [_bits(each) for each in value] if isinstance(value, list | tuple) else value


def _everything(run: Run) -> dict[str, Any]:
    """All that a run keeps, but for the clock and the number of its lives; `result` holds curve, trace and confusion."""
    state = {key: value for key, value in run.state().items() if key not in ("seconds", "resumed")}
    return {"state": _bits(state), "result": run.result()}


def _small(name: str, labels: int) -> Callable[[Noise], Dataset]:
    """Made-up examples in the shape of some data, few of those of SVHN, whose nets are large."""
    source, n = SOURCES[name], 4 if name == "svhn" else 24

    def make(noise: Noise) -> Dataset:
        x = torch.randint(256, (n, *source.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        y = torch.arange(n) % source.n_classes
        labelled = (x[:labels], y[:labels]) if labels else (None, None)
        spec = Spec(name, source.shape, source.n_classes)
        return Dataset(spec, Data(x, 1 / 255, noise, *labelled), x[: n // 2], y[: n // 2], x, y, 1 / 255, "", "", {})

    return make


def _run(trial: Trial, mode: engine.Mode) -> Run:
    return Run(trial, CPU, mode=mode, data=_small(trial.data, trial.labels))


@pytest.mark.parametrize("path", METHODS)
def test_every_method_takes_the_same_trial_each_way_and_from_one_to_the_other(
    path: str, make_trial: Callable[..., Trial], soon: None, tmp_path: Path
) -> None:
    """Scored between the two recordings and amid replays; interrupted twice, and gone on with the other way."""
    cls = method_class(path)
    config = _config(cls, "plane" if "nets" in cls.Config.__dataclass_fields__ else None)
    data = NETS["plane"] if hasattr(config, "nets") else "synthetic"
    small = {"pretraining_epochs": 1} if hasattr(config, "pretraining_epochs") else {}
    full = {**asdict(config), **small}
    trial = replace(
        make_trial(data=data, batch=6, steps=17, validate=3, labels=9 if cls.needs_labels or "samm" in path else 0),
        method=path,
        config=full,
        task="classification" if cls.needs_labels else "clustering",
    )
    whole = _finished(_run(trial, "eager"))
    expected = _everything(whole)
    graph = _finished(_run(trial, "graph"))
    assert _everything(graph) == expected
    # all methods of this project that take steps can be recorded
    assert (graph.engine.name, graph.engine.remark) == ("graph" if cls.iterative else "eager", "")
    if not cls.iterative:
        assert graph.steps == 0
        return
    state, lives = None, []
    for mode, until in (("graph", 6), ("eager", 8), ("graph", 15), ("auto", 17)):
        run = _run(trial, mode)  # type: ignore[arg-type]
        if state is not None:
            run.restore(state)
        assert run.advance(lambda run=run, until=until: run.step == until, lambda *_: None, lambda _: None) == (  # type: ignore[misc]
            until == 17
        )
        lives.append(run.engine.name)
        checkpoint.save(tmp_path / "saved", run.state())
        state, _ = checkpoint.load(tmp_path / "saved", trial.digest)
        assert state is not None
    assert lives == ["graph", "eager", "graph", "eager"]
    assert _everything(run) == expected


LARGE = [
    "amm_k20",
    "amm_k30",
    "amm_k20_works",
    "amm_k30_works",
    "amm_k10_given_y",
    "amm_k10_noise",
    "amm_k10_draws_100",
    "amm_k10_draws_wide",
    "amm_k10_works_draws_100",
    "amm_k30_draws",
    "amm_k30_draws_100",
    "aae_k16",
    "aae_k30",
    *(f"{floor}_k{k}" for floor in ("kmeans", "mixture", "spectral") for k in (20, 30)),  # which take no steps
    "aae_k30_narrow",
    "gmvae_k10",
    "gmvae_k30",
    "vade_300",
    "infogan",
]  # of MNIST; the same code as in the digits' rows
SVHN = [
    "supervised",
    "vat_small",
    "improvedgan",
    "badgan",
    "ali",
    "aae",
    "triplegan",
    "sgan",
]  # of Table 2; SAMM's are AMM's code
# ten seconds each, and digits have the like
HEAVY = {("svhn_semi", row) for row in SVHN if row != "supervised"}
HEAVY |= {("mnist_unsup", "aae_k30_appendix")}
STUDIES = ["ablation_plane", "ablation_digits", "ablation_mnist14", "checks_mnist14"]  # variants of AMM, many and alike
ROWS = [
    (name, row.row)
    for name in names()
    if name not in STUDIES
    for row in load_suite(name).rows
    if not (name == "mnist_unsup" and row.row in LARGE) and (not name.startswith("svhn") or row.row in SVHN)
]
KNOBS = [  # that no other row has
    *(("ablation_digits", row) for row in ("averaged", "y_noise_fixed", "learned_y_draws")),
    *(("ablation_mnist14", row) for row in ("k30_given_z_30", "learned_y_draws_leaky_decoder_20")),
]


def _shortened(name: str, row: str) -> Trial:
    """A trial with its row's nets and settings, of which only what comes before and after the steps is made shorter."""
    (trial,) = trials(load_suite(name), "paper", [row], [0])
    less = {key: 1 for key in ("pretraining_epochs", "n_init") if key in trial.config}
    batch, steps = (2, 5) if trial.data == "svhn" else (4, 6)
    return replace(
        trial, config={**trial.config, **less}, batch=batch, steps=steps, validate=99, labels=min(trial.labels, 9)
    )


def _different() -> list[Any]:
    """Rows that are still different once shortened: the number of labels tells some apart, and here it does not."""
    found: dict[str, Any] = {}
    for at in ROWS + KNOBS:
        what = json.dumps({**_shortened(*at).to_json(), "row": ""}, sort_keys=True)
        found.setdefault(what, pytest.param(*at, marks=[pytest.mark.slow] * (at in HEAVY)))
    return list(found.values())


@pytest.mark.parametrize(("name", "row"), _different())
def test_a_shipped_row_takes_the_same_steps_each_way(name: str, row: str, soon: None) -> None:
    trial = _shortened(name, row)
    eager, graph = (_finished(_run(trial, mode)) for mode in ("eager", "graph"))
    assert _everything(graph) == _everything(eager)
    assert (graph.engine.name, graph.engine.remark) == ("graph" if graph.steps else "eager", "")


@pytest.mark.parametrize("row", ["samm", "supervised"])
def test_in_bf16_too(row: str, soon: None) -> None:
    (trial,) = trials(load_suite("digits_semi"), "paper", [row], [0])
    trial = replace(trial, batch=4, steps=6, validate=99, labels=9, precision="bf16")
    eager, graph = (_finished(_run(trial, mode)) for mode in ("eager", "graph"))
    assert _everything(graph) == _everything(eager)
    assert (graph.engine.name, graph.engine.remark) == ("graph", "")
    assert _everything(eager) != _everything(_finished(_run(replace(trial, precision="fp32"), "eager")))
