"""What a few trials say: mean, deviation, confidence interval, and the verdict against a published number.

Deviations have ddof = 1, intervals are Student's t at 95 %. A published number is known only by its mean, deviation and
number of trials, so both tests work on those: Welch's t-test asks whether two means differ, two one-sided Welch tests
(TOST, Schuirmann 1987) whether they lie within a margin of each other that was fixed before the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.05  # of both tests; the interval is 1 - LEVEL
ENOUGH = 3  # trials below which no verdict is given
TESTED = ("reproduced", "better", "not reproduced", "inconclusive")  # the words that rest on a test
DIGITS = {"nmi": 3, "ari": 3, "live": 1}  # decimals of scores that are no percentages; those have two


@dataclass(frozen=True)
class Summary:
    """A sample by its moments: n values, their mean, std (ddof = 1) and 95 % interval of the mean; None for n = 1.

    `digits` are the decimals that it is printed with.
    """

    n: int
    mean: float
    std: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    digits: int = 2

    def text(self) -> str:
        return f"{self.mean:.{self.digits}f}" + ("" if self.std is None else f" ± {self.std:.{self.digits}f}")


@dataclass(frozen=True)
class Verdict:
    """A word for the table, and the numbers behind it."""

    word: str
    detail: str = ""


def decimals(metric: str) -> int:
    """How many decimals a score such as "test.majority" or "test.bayes_nmi" is printed with."""
    return DIGITS.get(metric.replace(".", "_").rpartition("_")[2], 2)


def summarise(values: Sequence[float], digits: int = 2) -> Summary:
    """The summary of finite values; raises ValueError for none, or for one that is not finite."""
    n = len(values)
    if not n or not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected finite values, at least one, got {list(values)}")
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(n, mean, digits=digits)
    if min(values) == max(values):  # the rounded mean may differ from equal values, which must not become a deviation
        return Summary(n, values[0], 0.0, values[0], values[0], digits)
    std = math.hypot(*(value - mean for value in values)) / math.sqrt(n - 1)  # a square might overflow
    half = _t_quantile(1 - LEVEL / 2, n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half, digits)


def _t_quantile(probability: float, freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats would take longer to import than a table to make

    return float(stdtrit(freedom, probability))


def _error(std1: float, n1: int, std2: float, n2: int) -> tuple[float, float]:
    """The standard error of a difference of means, and its degrees of freedom by Welch and Satterthwaite; (0, 0) if it is 0."""
    if min(n1, n2) < 2 or not min(std1, std2) >= 0:
        raise ValueError(f"a test needs n >= 2 and std >= 0 on both sides, got n {n1}, {n2} and std {std1}, {std2}")
    error1, error2 = std1 / math.sqrt(n1), std2 / math.sqrt(n2)
    error = math.hypot(error1, error2)
    return error, 1 / ((error1 / error) ** 4 / (n1 - 1) + (error2 / error) ** 4 / (n2 - 1)) if error else 0.0


def welch(
    mean1: float, std1: float, n1: int, mean2: float, std2: float, n2: int, alternative: str = "two-sided"
) -> float:
    """p-value of Welch's t-test of equal means; `alternative` says how mean1 relates to mean2: "less", "greater".

    Without any deviation the means are known exactly, and p is 0 or 1.
    """
    from scipy.special import stdtr

    error, freedom = _error(std1, n1, std2, n2)
    if not error:
        holds = {"two-sided": mean1 != mean2, "less": mean1 < mean2, "greater": mean1 > mean2}
        return 0.0 if holds[alternative] else 1.0
    t = (mean1 - mean2) / error
    below, above = float(stdtr(freedom, t)), float(stdtr(freedom, -t))
    return {"less": below, "greater": above, "two-sided": 2 * min(below, above)}[alternative]


def tost(mean1: float, std1: float, n1: int, mean2: float, std2: float, n2: int, margin: float) -> float:
    """p-value of "the means differ by `margin` or more"; small means equivalent. Raises ValueError for margin <= 0."""
    if not margin > 0:
        raise ValueError(f"expected a margin > 0, got {margin}")
    above = welch(mean1, std1, n1, mean2 - margin, std2, n2, "greater")
    below = welch(mean1, std1, n1, mean2 + margin, std2, n2, "less")
    return max(above, below)


def detectable(std1: float, n1: int, std2: float, n2: int, power: float = 0.8) -> float:
    """The least distance of two means that Welch's two-sided test at LEVEL finds with probability `power`; 0 without deviation.

    From the noncentral t distribution, with the Welch-Satterthwaite degrees of freedom of these deviations.
    """
    from scipy.optimize import brentq
    from scipy.special import nctdtr, stdtrit

    error, freedom = _error(std1, n1, std2, n2)
    if not error:
        return 0.0
    limit = float(stdtrit(freedom, 1 - LEVEL / 2))
    missed = lambda t: float(nctdtr(freedom, t, limit)) - (1 - power)  # the other tail is next to nothing
    upper = limit
    while missed(upper) > 0:
        upper *= 1.5
    return float(brentq(missed, 0, upper)) * error


def bootstrap(values: Sequence[float], resamples: int = 9999) -> tuple[float, float]:
    """The 95 % BCa interval of the mean of at least two values, for samples that no normal distribution fits.

    Equal values always give an equal interval: the resampling has a seed of its own.
    """
    import numpy as np
    from scipy.stats import bootstrap as resample

    if min(values) == max(values):
        return values[0], values[0]
    found = resample((values,), np.mean, n_resamples=resamples, rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def verdict(
    ours: Summary,
    mean: float,
    std: float | None,
    n: int | None,
    margin: float,
    lower_is_better: bool = True,
    comparable: bool = True,
) -> Verdict:
    """Our trials against a published mean, std and n (None where not published).

    In this order: a run that is not comparable, or has fewer than three trials, gets no verdict; a published number
    without std or n, or of one trial, gets the difference and our interval; within `margin` (TOST p < 0.05) is *reproduced*; else
    a significant Welch difference is *better* or *not reproduced*; the rest is *inconclusive*.
    """
    difference = f"{ours.mean - mean:+.{ours.digits}f}"
    if not comparable:
        return Verdict("quick run, not a reproduction")
    if ours.n < ENOUGH or ours.std is None:
        return Verdict(f"too few trials ({ours.n})", difference)
    if std is None or n is None or n < 2:
        missing = "no published std" if std is None else "no published n" if n is None else f"published n {n}"
        return Verdict(f"no test ({missing})", f"{difference}, {_interval(ours, mean)}")
    equivalent = tost(ours.mean, ours.std, ours.n, mean, std, n, margin)
    different = welch(ours.mean, ours.std, ours.n, mean, std, n)
    detail = f"{difference}, TOST p {_p(equivalent)}, Welch p {_p(different)}"
    if equivalent < LEVEL:
        return Verdict("reproduced", detail)
    if different >= LEVEL:
        if std / math.sqrt(n) * NormalDist().inv_cdf(1 - LEVEL) >= margin:  # Student's quantiles are larger yet
            detail += f"; the published spread is too wide for any trials to be shown within {margin:g}"
        return Verdict("inconclusive", detail)
    return Verdict("better" if (ours.mean < mean) == lower_is_better else "not reproduced", detail)


def _interval(ours: Summary, mean: float) -> str:
    """The 95 % interval of our mean's difference to a number taken as exact."""
    if ours.ci_low is None or ours.ci_high is None:
        return "no interval"
    low, high = (f"{end - mean:+.{ours.digits}f}" for end in (ours.ci_low, ours.ci_high))
    return f"95 % CI {low} to {high}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
