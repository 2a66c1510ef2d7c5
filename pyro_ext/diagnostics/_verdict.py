"""From numbers to sentences for a reader who is no statistician."""

import math
from collections.abc import Mapping

import numpy as np

from pyro_ext.diagnostics._estimates import Estimate
from pyro_ext.diagnostics._reference import Distance
from pyro_ext.diagnostics._result import Result
from pyro_ext.diagnostics.evidence import Evidence

__all__ = ["behind_best", "choice", "missed", "plain", "sentence", "short"]

_MEAN_LIMIT = 0.1
_SD_LIMIT = math.log(1.1)
_SIGMAS = 3.0
_NEARLY_ALL = 0.9
_FEW = 0.1
_LARGE = 1000.0
_UNTRUSTED = 2  # the last of the grades
_MISSED = -math.log(0.9)  # nats of log p(x), where a tenth of the posterior is not found


def behind_best(results: Mapping[str, Result]) -> dict[str, Estimate]:
    """Return how far each ELBO is below the highest one, paired draw by draw.

    Args:
        results: Results by name.
    """
    best = max(results.values(), key=lambda result: result.evidence.elbo.value)
    found = {}
    for name, result in results.items():
        gap = best.evidence.draws - result.evidence.draws
        error = (gap.std() / len(gap) ** 0.5).item()
        found[name] = Estimate(gap.mean().item(), error)
    return found


def missed(results: Mapping[str, Result]) -> dict[str, str]:
    """Return the guides that leave out a part of the posterior, and which guide finds it.

    An ELBO is at most log p(x). Where a guide's estimate of log p(x) is below the ELBO of another
    guide of the same model and data, it has drawn from a part of the posterior alone, of which its
    k-hat cannot know.

    Args:
        results: Results by name.
    """
    found = {}
    for name, result in results.items():
        rivals = [n for n, r in results.items() if r.posterior == result.posterior and n != name]
        if result.posterior is None or not rivals:
            continue
        finder = max(rivals, key=lambda rival: results[rival].evidence.elbo.value)
        best, own = results[finder].evidence.elbo, result.evidence.log_evidence
        if best.value - own.value > _MISSED + _SIGMAS * math.hypot(best.se, own.se):
            found[name] = finder
    return found


def short(result: Result, finder: str | None) -> str:
    """Return the verdict in a few words.

    Args:
        result: A guide's result.
        finder: Which guide finds what it misses, see ``missed``.
    """
    found = [] if result.distance is None else _faults(result.distance)
    return "; ".join([_graded(result, finder), *found])


def sentence(name: str, result: Result, finder: str | None) -> str:
    """Return the verdict as one or two sentences.

    Args:
        name: Name of the guide.
        result: Its result.
        finder: Which guide finds what it misses, see ``missed``.
    """
    text = f"{name}: {_graded(result, finder)} ({_numbers(result.evidence)})."
    far = result.distance
    if far is None:
        return text
    found = _faults(far)
    if found:
        return f"{text} Unweighted, against the reference: {'; '.join(found)}."
    return (
        f"{text} Unweighted, no difference from the reference beyond noise (worst mean "
        f"{far.worst_mean_error:+.2f} sd, worst sd ratio {far.worst_sd_ratio:.2f})."
    )


def plain(value: float, sign: str = "") -> str:
    """Return a number with two decimals, or two digits where it is large.

    Args:
        value: The number.
        sign: ``"+"`` to show that of a positive one.
    """
    return f"{value:{sign}.2f}" if abs(value) < _LARGE else f"{value:{sign}.1e}"


def _faults(distance: Distance) -> list[str]:
    """Return what is off by more than the limits and more than noise explains.

    Args:
        distance: Distance of a posterior to the reference.
    """
    found = []
    errors = np.abs(distance.mean_error)
    off = errors > _MEAN_LIMIT + _SIGMAS * distance.noise
    if off.any():
        worst = int(np.where(off, errors, 0).argmax())
        found.append(
            f"means off by up to {plain(distance.mean_error[worst], '+')} sd "
            f"({distance.labels[worst]})"
        )
    with np.errstate(divide="ignore"):
        logs = np.log(distance.sd_ratio)
    limit = _SD_LIMIT + _SIGMAS * distance.noise
    for sign, word, edge in ((-1, "too narrow", "down to"), (1, "too wide", "up to")):
        beyond = sign * logs > limit
        if beyond.any():
            worst = int(np.where(beyond, sign * logs, 0).argmax())
            found.append(
                f"{word}, sd {edge} {plain(distance.sd_ratio[worst])} of the reference "
                f"({distance.labels[worst]})"
            )
    return found


def choice(results: Mapping[str, Result]) -> str:
    """Return one sentence on which guide to use, and why.

    Args:
        results: Results by name.
    """
    gaps, seen = behind_best(results), missed(results)
    grades = {name: _grade(result, seen.get(name)) for name, result in results.items()}
    order = sorted(results, key=lambda name: (grades[name], gaps[name].value))
    first = order[0]
    grade = grades[first]
    if len(order) == 1:
        trust = " It is not to be trusted." if grade == _UNTRUSTED else ""
        return f"Only one guide, so nothing to choose from.{trust} {_ADVICE[grade]}"
    best = min(gaps, key=lambda name: gaps[name].value)
    rivals = {name: gap for name, gap in gaps.items() if name != best}
    rival = min(rivals, key=lambda name: rivals[name].value)
    lead = gaps[rival]
    if first != best:
        why = (
            f"its importance weights behave better than those of {best}, although its ELBO is "
            f"lower by {gaps[first]} nats (paired)"
        )
    elif lead.value > _SIGMAS * lead.se:
        why = f"its ELBO is the highest, by {lead} nats over {rival} (paired)"
    else:
        why = (
            f"its ELBO is the highest, though {rival} is no worse within noise "
            f"({lead} nats, paired)"
        )
    advice = _ADVICE[grade]
    if grade == _UNTRUSTED:
        return f"None of them is to be trusted. The nearest is {first}: {why}. {advice}"
    return f"Use {first}: {why}. {advice}"


_GRADES = (
    "k-hat finds no fault, and the draws need hardly any weighting",
    "weight its draws: as they are they differ from the posterior",
    "not to be trusted, neither as it is nor weighted",
)

_ADVICE = (
    "That k-hat finds no fault is no proof: it sees only where the guide puts its draws.",
    "Use its draws with their importance weights, not as they are.",
    "Fit for longer, or try a richer family or another parametrisation.",
)


def _graded(result: Result, finder: str | None) -> str:
    if result.points:
        return f"no posterior of {', '.join(result.points)}, which it has at a point"
    grade = _grade(result, finder)
    if finder is not None and _grade(result, None) < grade:
        return f"{_GRADES[grade]}: it misses a part of the posterior that {finder} finds"
    return _GRADES[grade]


def _grade(result: Result, finder: str | None) -> int:
    if finder is not None or result.points:
        return _UNTRUSTED
    bounds = result.evidence
    shape = bounds.k_hat
    several = shape.values.numel() > 1
    share = shape.share_above
    if share > (_FEW if several else 0):
        return _UNTRUSTED
    return 0 if share == 0 and bounds.effective_share >= _NEARLY_ALL else 1


def _numbers(bounds: Evidence) -> str:
    shape = bounds.k_hat
    effective = f"effective share of the draws {bounds.effective_share:.0%}"
    limit = f"{shape.threshold:.2f}"
    if shape.values.numel() == 1:
        value = shape.values.item()
        word = "above the" if value > shape.threshold else "below the"
        return f"k-hat {value:.2f}, {word} limit of {limit}; {effective}"
    worst = ", ".join(str(index) for index in shape.worst(3).tolist())
    return (
        f"k-hat above {limit} for {shape.share_above:.1%} of the datapoints, median "
        f"{shape.median:.2f}, worst at datapoints {worst}; median {effective}"
    )
