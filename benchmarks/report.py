"""Fill the tables and figures of ``docs/benchmarks.md`` with the results of the benchmarks.

    python benchmarks/report.py

writes what stands between ``<!-- name -->`` and ``<!-- end -->`` anew, from ``benchmarks/results``
and ``benchmarks/speed/result.json``, with machine and date. Losing rows included.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import _figures

__all__ = ["main"]

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
ORDER = ("ours", "Pyro", "NumPyro")
Cells = dict[str, Any]

PUBLISHED = {
    "1/VAE/1": "86.76, 86.35",
    "1/VAE/5": "86.47, 86.10",
    "1/VAE/50": "86.35, 86.06",
    "1/IWAE/1": "86.76, 86.35",
    "1/IWAE/5": "85.54, 85.18",
    "1/IWAE/50": "84.78, 84.59",
    "2/VAE/1": "85.33, 84.83",
    "2/VAE/5": "85.01, 84.08",
    "2/VAE/50": "84.78, 83.89",
    "2/IWAE/1": "85.33, 84.83",
    "2/IWAE/5": "83.89, 83.48",
    "2/IWAE/50": "82.90, 82.82",
}
"""Test NLL after 3,280 epochs: Burda et al. (2015), and nbip/IWAE, who took the same schedule."""

DREG = {"1/IWAE/1": "86.08", "1/IWAE/5": "84.90", "1/IWAE/50": "84.32"}
"""The same by DReG, of nbip/IWAE."""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def machine(about: dict[str, Any]) -> str:
    """Return where and when, in a sentence."""
    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
    name = about["machine"].replace(" Processor", "")
    return (
        f"{about['date']}, {name}, {about['threads']} thread"
        f"{'s' if about['threads'] != 1 else ''}{'; ' + versions if versions else ''}."
    )


def speed(content: dict[str, Any]) -> list[str]:
    """Return the section on time per step."""
    results = content["results"]
    ours = ("eager", "recorded", "step", "run")
    names = list(results)
    ways = list(dict.fromkeys(way for result in results.values() for way in result["ratio"]))
    rows = []
    for way in ways:
        whose = "ours" if way in ours else "peer"
        cells = [result["ratio"].get(way) for result in results.values()]
        rows.append([whose, way, *("" if c is None else f"{c:.3g}" for c in cells)])
    rows.append(
        ["", "hand-written, ms", *(f"{r['ms']['hand-written']:.3g}" for r in results.values())]
    )
    lost = []
    for name, result in results.items():
        best = min(result["ratio"][way] for way in ours)
        faster = {w: r for w, r in result["ratio"].items() if w not in ours and r < best}
        lost += [f"{way} on {name} ({r:.3g} against {best:.3g})" for way, r in faster.items()]
        lost += [
            f"our {way} step on {name} ({result['ratio'][way]:.3g} times hand-written)"
            for way in ("eager", "recorded")
            if result["ratio"][way] > 1
        ]
    return [
        *table(["", "step", *names], rows),
        "",
        f"Where we lose: {'; '.join(lost) or 'nowhere'}.",
    ]


def accuracy(cells: Cells) -> list[str]:
    """Return the section on errors of posteriors."""
    budget = cells.get("budget", {"steps": 0, "draws": 0})
    exact = {n.split("/")[0]: v for n, v in cells.items() if n.endswith("/exact")}
    fits, refused = fits_of(cells)
    rows = []
    for (who, guide, loss), found in sorted(fits.items(), key=lambda fit: _order(*fit[0])):
        gaps = [
            abs(v["log_evidence"] - exact[p]) for p, v in found.items() if exact[p] is not None
        ]
        errors = [value["mean_error"] for value in found.values()]
        rows.append(
            [
                who,
                guide,
                loss,
                f"{sum(map(right, found.values()))} of {len(found)}",
                f"{median(errors):.3f}",
                f"{max(errors):.3g}",
                f"{sum(value['k_hat'] < 0.7 for value in found.values())}",
                f"{median(gaps):.3f}" if gaps else "",
                f"{median(value['seconds'] for value in found.values()):.1f}",
                f"{median(value['gradients'] for value in found.values()):,.0f}",
            ]
        )
    head = ["", "guide", "loss", "within 0.05 sd and 5%", "median mean error", "worst", "k̂ < 0.7"]
    head += ["evidence error, nats", "CPU s", "gradients"]
    return [
        f"{budget['steps']:,} steps of {budget['draws']} draws.",
        "",
        *table(head, rows),
        "",
        *per_posterior(fits, exact),
        "",
        f"Where we lose: {'; '.join(lost_accuracy(fits)) or 'nowhere'}.",
        *(f"\n{who} cannot be fitted to {', '.join(p)}." for who, p in refused.items()),
    ]


def _order(who: str, guide: str, loss: str) -> tuple[Any, ...]:
    return ORDER.index(who), guide != "auto", guide, loss


def fits_of(cells: Cells) -> tuple[dict[Any, dict[str, Any]], dict[str, list[str]]]:
    """Return fits by who, guide, loss and posterior; and the posteriors that a guide refuses.

    A fit that ended in numbers that are not finite was not done in any time.
    """
    fits: dict[Any, dict[str, Any]] = {}
    refused: dict[str, list[str]] = {}
    for name, value in cells.items():
        if name.count("/") == 4:
            posterior, who, guide, loss, _ = name.split("/")
            if "failed" in value:
                why = value["failed"].partition("\n")[0]
                refused.setdefault(f"{who}'s {guide} ({why})", []).append(posterior)
            else:
                lost = {} if math.isfinite(value["mean_error"]) else {"seconds": math.inf}
                fits.setdefault((who, guide, loss), {})[posterior] = value | lost
    return fits, refused


def right(fit: dict[str, Any]) -> bool:
    """Whether means are within 0.05 sd and sds within 5%."""
    return fit["mean_error"] <= 0.05 and fit["low"] >= 0.95 and fit["high"] <= 1.05


def per_posterior(fits: dict[Any, dict[str, Any]], exact: dict[str, Any]) -> list[str]:
    """Return the automatic fit beside each peer's best, posterior by posterior."""
    rows = []
    for posterior in exact:
        auto = fits.get(("ours", "auto", "auto"), {}).get(posterior)
        cells = ["not run"] + [""] * 5
        if auto:
            known = exact[posterior]
            cells = [
                auto["verdict"],
                f"{auto['mean_error']:.3f}",
                f"{auto['low']:.3f} to {auto['high']:.3f}",
                f"{auto['k_hat']:.2f}",
                "" if known is None else f"{auto['log_evidence'] - known:+.3f}",
                f"{auto['seconds']:.1f}",
            ]
        rows.append(
            [posterior, *cells, *(best(fits, who, posterior) for who in ("Pyro", "NumPyro"))]
        )
    head = ["posterior", "`auto`", "mean error", "sd ratios", "k̂", "evidence error", "CPU s"]
    return table([*head, "best of Pyro", "best of NumPyro"], rows)


def best(fits: dict[Any, dict[str, Any]], who: str, posterior: str) -> str:
    """Return the mean error and the guide of a library's best fit."""
    found = {g: f[posterior] for (w, g, _), f in fits.items() if w == who and posterior in f}
    if not found:
        return "not run"
    guide = min(found, key=lambda name: found[name]["mean_error"])
    return f"{found[guide]['mean_error']:.3f} ({guide}, {found[guide]['seconds']:.1f} s)"


def lost_accuracy(fits: dict[Any, dict[str, Any]]) -> list[str]:
    """Return in words where a peer is nearer, or cheaper."""
    lost = []
    auto = fits.get(("ours", "auto", "auto"), {})
    for posterior, own in auto.items():
        for (who, guide, _), found in fits.items():
            other = found.get(posterior)
            if who != "ours" and other and other["mean_error"] < own["mean_error"]:
                lost.append(
                    f"`auto` on {posterior}: {own['mean_error']:.3f} against "
                    f"{other['mean_error']:.3f} of {who}'s {guide}"
                )
        if not right(own):
            lost.append(f"`auto` misses the limits on {posterior} ({own['verdict']})")
    for who in ("Pyro", "NumPyro"):
        other = [found for (w, _, _), found in fits.items() if w == who]
        both = [p for p in auto if any(p in found for found in other)]
        cheaper = [
            p
            for p in both
            if min(found[p]["seconds"] for found in other if p in found) < auto[p]["seconds"]
        ]
        if cheaper:
            lost.append(
                f"`auto` takes longer than the fastest guide of {who} on {len(cheaper)} of "
                f"{len(both)} posteriors"
            )
    pairs = {
        "Diagonal": "AutoNormal",
        "FullCovariance": "AutoMultivariateNormal",
        "Flow": "AutoIAFNormal",
    }
    for family, guide in pairs.items():
        own = fits.get(("ours", family, "ELBO"), {})
        for who in ("Pyro", "NumPyro"):
            other = fits.get((who, guide, "Trace_ELBO"), {})
            both = own.keys() & other.keys()
            nearer = [p for p in both if other[p]["mean_error"] < own[p]["mean_error"]]
            faster = [p for p in both if other[p]["seconds"] < own[p]["seconds"]]
            if nearer or faster:
                lost.append(
                    f"{who}'s {guide} against `{family}`, of {len(both)} posteriors: nearer on "
                    f"{len(nearer)}, faster on {len(faster)}"
                )
    return lost


def time_to_bound(cells: Cells) -> list[str]:
    """Return the section on time to a stated bound."""
    rows = []
    for name, value in cells.items():
        posterior, who, how, _ = name.split("/")
        reached = f"{value['seconds']:.2f}" if value["reached"] else "not reached"
        steps = "" if value["steps"] is None else f"{value['steps']:,}"
        rows.append([posterior, who, how, reached, steps, f"{value['elbo']:.2f}"])
    return table(["posterior", "", "step", "CPU s to the bound", "steps", "ELBO then"], rows)


def iwae(cells: Cells) -> list[str]:
    """Return the section on MNIST."""
    rows, times, whole = [], [], 0.0
    for name, value in cells.items():
        parts = name.split("/")
        if parts[0] == "time":
            _, layers, bound, estimator, k = parts
            saved = value["eager"] / value["compiled"]
            hours = value["compiled"] * 3280 / 60
            whole += hours
            times.append(
                [
                    layers,
                    bound,
                    estimator,
                    k,
                    f"{value['eager']:.3f}",
                    f"{value['compiled']:.3f}",
                    f"{saved:.2f}",
                    f"{value['compile_seconds']:.0f}",
                    f"{hours:.1f}",
                ]
            )
            continue
        pixels, layers, bound, estimator, k, _ = parts
        key = f"{layers}/{bound}/{k}"
        published = (DREG if estimator == "dreg" else PUBLISHED).get(key, "")
        rows.append(
            [
                layers,
                bound,
                estimator,
                k,
                pixels,
                f"{value['epochs']:,.4g} of 3,280",
                f"{value['nll']:.2f} ± {value['se']:.2f}",
                " + ".join(map(str, value["active"])),
                f"{value['samples']:,}, {value['test_images']:,}",
                published,
            ]
        )
    head = ["layers", "loss", "estimator", "k", "pixels", "epochs", "test NLL", "active units"]
    lines = table([*head, "samples, images", "published, all epochs"], rows)
    if times:
        head = ["layers", "loss", "estimator", "k", "eager", "compiled", "ratio", "compile, s"]
        lines += [
            "",
            "Minutes of an epoch (2,980 steps), and hours that the whole schedule would take, "
            f"{whole:,.0f} for all {len(times)} cells:",
        ]
        lines += ["", *table([*head, "hours"], times)]
    return lines


def pixelcnn(cells: Cells) -> list[str]:
    """Return the section on autoregressive decoders."""
    rows = [
        [
            name,
            f"{v['nll']:.2f} ± {v['se']:.2f}",
            f"{v['rate']:.2f}",
            f"{v['test_images']:,}",
            f"{v['samples']}",
            f"{v['seconds']:.0f}",
        ]
        for name, v in cells.items()
    ]
    head = ["data, channels x layers", "test NLL", "rate, nats", "images", "samples", "CPU s"]
    return table(head, rows)


def labels(cells: Cells) -> list[str]:
    """Return the section on few labels."""
    rows = [
        [name, f"{v['accuracy']:.2%}", f"{v['test_images']:,}", f"{v['seconds']:.0f}"]
        for name, v in cells.items()
    ]
    return table(["data, model, labels", "test accuracy", "test images", "CPU s"], rows)


def scaling(cells: Cells) -> list[str]:
    """Return the section on cost against size."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, value in cells.items():
        axis, how, size = name.rsplit("/", 2)
        found.setdefault(axis, {}).setdefault(how, {})[int(size)] = value
    rows = []
    for axis, ways in sorted(found.items()):
        for how, points in ways.items():
            sizes = sorted(points)
            slopes = [
                math.log(points[b] / points[a]) / math.log(b / a)
                for a, b in itertools.pairwise(sizes)
            ]
            cost = ", ".join(f"{size:,}: {points[size]:.3g}" for size in sizes)
            rows.append([axis, how, cost, ", ".join(f"{slope:.2f}" for slope in slopes)])
    return table(["", "step", "ms by size", "exponents"], rows)


SECTIONS: dict[str, Callable[[Cells], list[str]]] = {
    "accuracy": accuracy,
    "time_to_bound": time_to_bound,
    "iwae": iwae,
    "pixelcnn": pixelcnn,
    "labels": labels,
    "scaling": scaling,
}


def fill(page: str, name: str, content: dict[str, Any], lines: list[str]) -> str:
    """Return the page with this text at its place.

    Args:
        page: The page.
        name: Name of the place.
        content: What the file of results holds, for the machine.
        lines: The text.
    """
    text = "\n".join([f"<!-- {name} -->", machine(content["about"]), "", *lines, "<!-- end -->"])
    before, begin, rest = page.partition(f"<!-- {name} -->")
    _, end, after = rest.partition("<!-- end -->")
    if not (begin and end):
        raise SystemExit(f"expected <!-- {name} --> and <!-- end --> in the page; got neither.")
    return before + text + after


def main(arguments: list[str] | None = None) -> None:
    """Write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--speed", type=Path, default=HERE / "speed" / "result.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    figures = options.out.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    content = json.loads(options.speed.read_text())
    page = fill(options.page.read_text(), "speed", content, speed(content))
    for name, section in SECTIONS.items():
        path = options.results / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text())
            page = fill(page, name, content, section(content["cells"]))
            if name in _figures.FIGURES:
                _figures.FIGURES[name](content["cells"], figures / f"benchmarks_{name}.png")
    options.out.write_text(page)


if __name__ == "__main__":
    main()
