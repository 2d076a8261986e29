"""Whether two versions behave differently: two-sample tests over their runs. Pure; no thresholds on noise.

Errors: Fisher's exact test, with Newcombe's interval for the difference of two rates. Latency: Mann-Whitney's U with correction
for ties and continuity, with the Hodges-Lehmann shift and its interval. Looking again and again spends one alpha: the k-th look
gets `alpha * 6 / (pi * k)**2`, which sums to alpha over all looks.

Sources: Fisher (1922); Newcombe, Statistics in Medicine 17 (1998), method 10; Mann and Whitney (1947); Hodges and Lehmann (1963).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from nexus.core.rollouts import Analysis
from nexus.ports.run_samples import Sample

# What a version may fail of its runs when there is nothing to compare it with.
ASSUMED_ERROR_RATE = 0.05
FEWEST_ERRORS = 3
# More looks than this would come from runs that hardly add to what is known.
GROWTH = 1.25
COLLAPSE_MARGIN = 0.25
COLLAPSE_ALPHA = 1e-6
COLLAPSE_RUNS = 20
_SHIFT_SAMPLE = 300
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class RateDifference:
    """Second minus first, with a confidence interval; `p` is two-sided."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How much longer the second sample takes (seconds), with a confidence interval; `p` is two-sided.

    `superiority` is the chance that a run of the second takes longer than one of the first (0.5: no difference).
    """

    first_median: float
    second_median: float
    shift: float
    low: float
    high: float
    p: float
    superiority: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why the new version is worse, in words and numbers."""

    code: str
    detail: str
    p: float


def fisher_greater(bad: int, total: int, bad_base: int, total_base: int) -> float:
    """The chance of at least `bad` failures among `total` when both samples fail alike (one-sided Fisher)."""
    if total == 0 or total_base == 0:
        return 1.0
    failures, everything = bad + bad_base, total + total_base
    return _sum_logs(_hypergeometric(k, total, failures, everything) for k in range(bad, min(failures, total) + 1))


def fisher_two_sided(bad: int, total: int, bad_base: int, total_base: int) -> float:
    """The chance of a table at most as likely as this one."""
    if total == 0 or total_base == 0:
        return 1.0
    failures, everything = bad + bad_base, total + total_base
    here = _hypergeometric(bad, total, failures, everything)
    lowest, highest = max(0, failures - total_base), min(failures, total)
    every = (_hypergeometric(k, total, failures, everything) for k in range(lowest, highest + 1))
    return _sum_logs(value for value in every if value <= here + 1e-7)


def binomial_greater(bad: int, total: int, rate: float) -> float:
    """The chance of at least `bad` failures in `total` runs that each fail with probability `rate`."""
    return _sum_logs(_log_choose(total, k) + k * math.log(rate) + (total - k) * math.log1p(-rate) for k in range(bad, total + 1))


def wilson(bad: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate."""
    if total == 0:
        return 0.0, 1.0
    z = _NORMAL.inv_cdf(0.5 + confidence / 2)
    rate, square = bad / total, z * z
    middle = (rate + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(rate * (1 - rate) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def compare_rates(bad: int, total: int, bad_other: int, total_other: int, confidence: float = 0.95) -> RateDifference:
    """Other minus one, with Newcombe's hybrid score interval."""
    first, second = bad / total if total else 0.0, bad_other / total_other if total_other else 0.0
    (low, high), (low_other, high_other) = wilson(bad, total, confidence), wilson(bad_other, total_other, confidence)
    difference = second - first
    return RateDifference(
        first=first,
        second=second,
        difference=difference,
        low=max(-1.0, difference - math.hypot(second - low_other, high - first)),
        high=min(1.0, difference + math.hypot(high_other - second, first - low)),
        p=fisher_two_sided(bad_other, total_other, bad, total),
    )


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """U of the second sample and z: how far it lies above what equal samples give, corrected for ties and continuity."""
    n, m = len(first), len(second)
    merged = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    ranks, ties, at = 0.0, 0.0, 0
    while at < len(merged):
        end = at
        while end < len(merged) and merged[end][0] == merged[at][0]:
            end += 1
        ranks += (at + end + 1) / 2 * sum(which for _, which in merged[at:end])
        ties += (end - at) ** 3 - (end - at)
        at = end
    u = ranks - m * (m + 1) / 2
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1))) if total > 1 else 0.0
    if variance <= 0:
        return u, 0.0
    distance = u - n * m / 2
    return u, math.copysign(max(0.0, abs(distance) - 0.5), distance) / math.sqrt(variance)


def mann_whitney_greater(first: Sequence[float], second: Sequence[float]) -> float:
    """One-sided p: the second sample takes longer. The normal approximation; meant for 8 values and more on each side."""
    if not first or not second:
        return 1.0
    return 0.5 * math.erfc(mann_whitney(first, second)[1] / math.sqrt(2))


def compare_durations(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Shift | None:
    """How much longer the second takes; None when either is empty. Long samples are thinned for the interval only."""
    if not first or not second:
        return None
    u, z = mann_whitney(first, second)
    few, few_other = _thin(first), _thin(second)
    differences = sorted(b - a for a in few for b in few_other)
    n, m = len(few), len(few_other)
    quantile = _NORMAL.inv_cdf(0.5 + confidence / 2)
    edge = max(0, math.floor(n * m / 2 - quantile * math.sqrt(n * m * (n + m + 1) / 12)))
    return Shift(
        first_median=quantile_of(first, 0.5),
        second_median=quantile_of(second, 0.5),
        shift=quantile_of(differences, 0.5),
        low=differences[min(edge, len(differences) - 1)],
        high=differences[max(0, len(differences) - 1 - edge)],
        p=math.erfc(abs(z) / math.sqrt(2)),
        superiority=u / (len(first) * len(second)),
    )


def quantile_of(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the neighbours; 0 for nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def alpha_of_look(alpha: float, look: int) -> float:
    """What the look number `look` (from 1) may spend."""
    return alpha * 6 / (math.pi * look) ** 2


def deserves_look(runs: int, looked_at: int) -> bool:
    """A look is taken when there is enough more to see than at the last one."""
    return runs > 0 and (looked_at == 0 or runs >= looked_at * GROWTH)


def find_worse(stable: Sample, fresh: Sample, rules: Analysis, *, look: int) -> Finding | None:
    """What is worse about the new version at this look, or None. Errors and latency share the look's alpha."""
    alpha = alpha_of_look(rules.alpha, look) / 2
    return _more_errors(stable, fresh, rules, alpha) or _slower(stable, fresh, rules, alpha)


def find_collapse(stable: Sample, fresh: Sample) -> Finding | None:
    """Whether a version is so broken that no test is worth its going on: a quarter more of its runs fail, beyond all doubt."""
    rules = Analysis(samples=COLLAPSE_RUNS, error_margin=COLLAPSE_MARGIN)
    return _more_errors(stable, fresh, rules, COLLAPSE_ALPHA)


def _more_errors(stable: Sample, fresh: Sample, rules: Analysis, alpha: float) -> Finding | None:
    if fresh.errors < FEWEST_ERRORS:
        return None
    rate = fresh.errors / fresh.runs
    if stable.runs >= rules.samples:
        base = stable.errors / stable.runs
        p = fisher_greater(fresh.errors, fresh.runs, stable.errors, stable.runs)
        against = f"{stable.errors} of {stable.runs} ({base:.1%}) before"
    else:
        base = ASSUMED_ERROR_RATE
        p = binomial_greater(fresh.errors, fresh.runs, base)
        against = f"{base:.0%} taken for granted, since the old version has too few runs to compare with"
    if p >= alpha or rate - base < rules.error_margin:
        return None
    detail = f"{fresh.errors} of {fresh.runs} runs failed ({rate:.1%}) against {against}; p = {p:.2g}"
    return Finding(code="rollout.more_errors", detail=detail, p=p)


def _slower(stable: Sample, fresh: Sample, rules: Analysis, alpha: float) -> Finding | None:
    if min(len(stable.durations), len(fresh.durations)) < min(rules.samples, 8):
        return None
    before, now = quantile_of(stable.durations, 0.5), quantile_of(fresh.durations, 0.5)
    if now < before * rules.latency_ratio or now - before < rules.latency_margin_s:
        return None
    p = mann_whitney_greater(stable.durations, fresh.durations)
    if p >= alpha:
        return None
    detail = (
        f"its median run takes {now:.3f} s against {before:.3f} s before "
        f"({len(fresh.durations)} and {len(stable.durations)} runs); p = {p:.2g}"
    )
    return Finding(code="rollout.slower", detail=detail, p=p)


def _thin(values: Sequence[float]) -> Sequence[float]:
    """At most a few hundred values with the same distribution: evenly spaced order statistics."""
    if len(values) <= _SHIFT_SAMPLE:
        return values
    ordered = sorted(values)
    return [ordered[round(at * (len(ordered) - 1) / (_SHIFT_SAMPLE - 1))] for at in range(_SHIFT_SAMPLE)]


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _hypergeometric(bad: int, total: int, failures: int, everything: int) -> float:
    """Logarithm of the chance that `bad` of all `failures` fall among `total` of `everything`."""
    return _log_choose(failures, bad) + _log_choose(everything - failures, total - bad) - _log_choose(everything, total)


def _sum_logs(logs: Iterable[float]) -> float:
    return min(1.0, math.fsum(math.exp(value) for value in logs))
