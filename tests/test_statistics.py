"""bench.statistics against hand-worked numbers, and against scipy and statsmodels on raw samples."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.statistics import Summary, _t_quantile, bootstrap, detectable, summarise, tost, verdict, welch


def test_summary_by_hand() -> None:
    summary = summarise([1.0, 2.0, 3.0, 4.0])
    assert summary.n == 4 and summary.mean == 2.5
    assert summary.std == pytest.approx(math.sqrt(5 / 3))  # squares 2.25 + 0.25 + 0.25 + 2.25 over n - 1 = 3
    half = 3.182446 * math.sqrt(5 / 3) / 2  # t quantile 0.975 with 3 degrees of freedom, from a printed table
    assert (summary.ci_low, summary.ci_high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)


def test_one_value_has_no_deviation() -> None:
    assert summarise([7.0]) == Summary(1, 7.0, None, None, None)


def test_equal_values_have_deviation_zero_exactly() -> None:
    assert summarise([0.1] * 3) == Summary(3, 0.1, 0.0, 0.1, 0.1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_summary_refuses_nothing_and_the_infinite(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected finite values"):
        summarise(values)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_welch_and_interval_equal_scipy_on_the_samples(seed: int, alternative: str) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(3, 0.5, 10), generator.normal(3.3, 1, 7)
    test = stats.ttest_ind(a, b, equal_var=False, alternative=alternative)
    ours = summarise(a.tolist())
    p = welch(ours.mean, ours.std or 0, 10, b.mean(), b.std(ddof=1), 7, alternative)
    assert p == pytest.approx(test.pvalue, rel=1e-9)
    assert (ours.ci_low, ours.ci_high) == pytest.approx(tuple(stats.t.interval(0.95, 9, a.mean(), stats.sem(a))))


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("distance", [0.0, 0.1, 1.0, 3.0, 30.0])  # of the means, in standard errors
def test_welch_equals_scipy_on_moments(alternative: str, distance: float) -> None:
    generator = np.random.default_rng(0)
    for std2 in (0.0, *10 ** generator.uniform(-6, 2, 100)):
        mean1, std1 = generator.normal(5, 3), 10 ** generator.uniform(-6, 2)
        n1, n2 = generator.integers(2, 100, 2).tolist()
        mean2 = mean1 + generator.choice([-1, 1]) * distance * math.hypot(std1 / n1**0.5, std2 / n2**0.5)
        numbers = (mean1, std1, n1, mean2, std2, n2)
        test = stats.ttest_ind_from_stats(*numbers, equal_var=False, alternative=alternative)
        assert welch(*numbers, alternative) == pytest.approx(test.pvalue, rel=1e-12, abs=0)


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 90, 1000])
def test_quantiles_equal_scipy(freedom: int) -> None:
    for probability in (0.5, 0.9, 0.975, 0.995):
        assert _t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-12)


def test_deviations_whose_squares_vanish_are_deviations() -> None:
    assert welch(1, 1e-200, 3, 1, 1e-200, 3) == pytest.approx(1)
    assert welch(1, 1e-200, 3, 2, 1e-170, 3) == 0.0
    assert welch(0, 1e-200, 10, 2e-200, 1e-200, 10) == pytest.approx(welch(0, 1, 10, 2, 1, 10), rel=1e-12)


def test_a_verdict_needs_no_scipy_stats() -> None:
    code = (
        "import sys; from bench.statistics import summarise, verdict; "
        "print(verdict(summarise([1.0, 2.0, 4.0]), 2.0, 1.0, 10, 0.1).word, 'scipy.stats' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["inconclusive", "False"]


def test_welch_by_hand() -> None:
    # variances of the means 1 and 1, so t = 2 / sqrt(2), and 2^2 / (1/3 + 1/3) = 6 degrees of freedom
    assert welch(5, 2, 4, 3, 2, 4) == pytest.approx(2 * stats.t.sf(2 / math.sqrt(2), 6))


def test_tost_by_hand() -> None:
    # difference 0.5, standard error sqrt(2), 6 degrees of freedom, margin 2: the upper bound is the nearer one
    assert tost(3.5, 2, 4, 3, 2, 4, margin=2) == pytest.approx(stats.t.cdf((0.5 - 2) / math.sqrt(2), 6))
    assert tost(3, 2, 4, 3.5, 2, 4, margin=2) == pytest.approx(tost(3.5, 2, 4, 3, 2, 4, margin=2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_tost_equals_statsmodels_on_the_samples(seed: int, margin: float) -> None:
    from statsmodels.stats.weightstats import ttost_ind

    draw = np.random.default_rng(seed)
    one, other = draw.normal(0, 1, 10), draw.normal(0.4, 2, 7)
    moments = (value for sample in (one, other) for value in (sample.mean(), sample.std(ddof=1), len(sample)))
    expected, _, _ = ttost_ind(one, other, -margin, margin, usevar="unequal")
    assert tost(*moments, margin) == pytest.approx(expected, rel=1e-9)  # type: ignore[call-arg]


@pytest.mark.parametrize("n", [3, 10, 25])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_detectable_equals_statsmodels_power(n: int, power: float) -> None:
    from statsmodels.stats.power import TTestIndPower

    effect = TTestIndPower().solve_power(nobs1=n, alpha=0.05, power=power)
    assert detectable(1.7, n, 1.7, n, power) == pytest.approx(1.7 * effect, rel=1e-3)


def test_without_deviation_the_answers_are_certain() -> None:
    assert welch(1, 0, 3, 1, 0, 3) == 1.0 and welch(1, 0, 3, 2, 0, 3) == 0.0
    assert welch(1, 0, 3, 2, 0, 3, "less") == 0.0 and welch(1, 0, 3, 2, 0, 3, "greater") == 1.0
    assert tost(1, 0, 3, 1.5, 0, 3, margin=1) == 0.0 and tost(1, 0, 3, 2.5, 0, 3, margin=1) == 1.0
    assert 0 < welch(1, 0, 3, 2, 1, 3) < 1


def test_tests_refuse_what_they_cannot_answer() -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        welch(1, 0.1, 1, 2, 0.1, 10)
    with pytest.raises(ValueError, match="std >= 0"):
        welch(1, -0.1, 3, 2, 0.1, 10)
    with pytest.raises(ValueError, match="margin > 0"):
        tost(1, 0.1, 3, 2, 0.1, 10, margin=0)


OURS = Summary(10, 3.4, 0.4, 3.11, 3.69)


@pytest.mark.parametrize(
    ("ours", "mean", "std", "n", "word"),
    [
        (OURS, 3.32, 0.39, 10, "reproduced"),
        (
            Summary(10, 3.9, 0.05, 3.86, 3.94),
            3.32,
            0.05,
            10,
            "reproduced",
        ),  # significantly worse, yet within the margin
        (Summary(10, 6.0, 0.4, 5.7, 6.3), 3.32, 0.39, 10, "not reproduced"),
        (Summary(10, 1.0, 0.4, 0.7, 1.3), 3.32, 0.39, 10, "better"),
        (Summary(3, 5.0, 3.0, -2.5, 12.5), 3.32, 0.39, 10, "inconclusive"),
        (Summary(3, 3.32, 0.0, 3.32, 3.32), 3.32, 0.0, 10, "reproduced"),
        (Summary(3, 9.0, 0.0, 9.0, 9.0), 3.32, 0.0, 10, "not reproduced"),
        (Summary(2, 3.32, 0.1, 2.4, 4.2), 3.32, 0.39, 10, "too few trials (2)"),
        (Summary(1, 3.32), 3.32, 0.39, 10, "too few trials (1)"),
        (OURS, 5.54, None, None, "no test (no published std)"),
        (OURS, 5.54, 0.1, None, "no test (no published n)"),
        (OURS, 5.54, 0.1, 1, "no test (published n 1)"),
    ],
)
def test_verdict_words(ours: Summary, mean: float, std: float | None, n: int | None, word: str) -> None:
    assert verdict(ours, mean, std, n, margin=1.0).word == word


def test_verdict_where_higher_is_better() -> None:
    better = Summary(10, 0.95, 0.01, 0.943, 0.957)
    assert verdict(better, 0.8, 0.01, 10, margin=0.02, lower_is_better=False).word == "better"
    assert verdict(better, 0.99, 0.01, 10, margin=0.02, lower_is_better=False).word == "not reproduced"


def test_a_quick_run_is_never_a_reproduction() -> None:
    assert verdict(OURS, 3.32, 0.39, 10, margin=1.0, comparable=False).word == "quick run, not a reproduction"


def test_verdict_details() -> None:
    assert verdict(OURS, 5.54, None, None, margin=1.0).detail == "-2.14, 95 % CI -2.43 to -1.85"
    assert verdict(Summary(1, 4.0), 3.5, 0.1, 10, margin=1.0).detail == "+0.50"
    detail = verdict(OURS, 3.32, 0.39, 10, margin=1.0).detail
    assert detail == "+0.08, TOST p < 0.001, Welch p 0.656"


def test_a_published_spread_too_wide_for_the_margin_is_told() -> None:
    """SVHN with K = 20, 35.0 ± 5.24 (10): not even the published mean itself, without any spread, is shown to be within 1."""
    told = "; the published spread is too wide for any trials to be shown within 1"
    same = verdict(Summary(10, 35.0, 0.0, 35.0, 35.0), 35.0, 5.24, 10, margin=1.0)
    assert same.word == "inconclusive" and same.detail.endswith(told)
    few = verdict(Summary(3, 5.0, 3.0, -2.5, 12.5), 3.32, 0.39, 10, margin=1.0)
    assert few.word == "inconclusive" and told not in few.detail


@pytest.mark.parametrize(
    ("n", "distance"), [(10, 1.3249), (20, 0.9091), (64, 0.4992)]
)  # printed tables of power, std 1
def test_detectable_is_that_of_printed_tables(n: int, distance: float) -> None:
    assert detectable(1.0, n, 1.0, n) == pytest.approx(distance, abs=2e-3)
    assert detectable(3.0, n, 3.0, n) == pytest.approx(3 * distance, abs=6e-3)


def test_detectable_differences_are_found_four_times_in_five() -> None:
    generator = np.random.default_rng(1)
    distance = detectable(1.0, 10, 2.0, 6)
    a, b = generator.normal(0, 1, (20_000, 10)), generator.normal(distance, 2, (20_000, 6))
    found = (stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.03)  # the test itself is approximate at n = 6
    assert detectable(0.0, 5, 0.0, 5) == 0
    assert detectable(1.0, 10, 2.0, 6, power=0.95) > distance


def test_bootstrap_intervals_hold_the_mean_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(2)
    held = []
    for _ in range(200):
        low, high = bootstrap(generator.exponential(1, 30).tolist(), 999)
        held.append(low <= 1 <= high)
    assert 0.86 <= np.mean(held) <= 1
    values = [3.0, 4.0, 9.0, 4.5]
    assert bootstrap(values) == bootstrap(values) and bootstrap(values)[0] < np.mean(values) < bootstrap(values)[1]
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)
    skewed = [1.0, 1.1, 1.3, 1.2, 9.0]
    for level, same in ((0.95, True), (0.9, False)):
        for method in ("BCa", "percentile"):
            rng = np.random.default_rng(0)
            right = stats.bootstrap(
                (skewed,), np.mean, confidence_level=level, method=method, rng=rng
            ).confidence_interval
            assert (bootstrap(skewed) == (right.low, right.high)) == (same and method == "BCa")
