"""One HTML page with everything in it: no scripts, no files beside it."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from pyro_ext.diagnostics._types import Figure

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.choice { border-left: .4rem solid #009E73; background: #f1f8f5; padding: .8rem 1rem;
  font-size: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
.notes { color: #555; font-size: .9rem; }
.figures { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
figure { margin: 0; } img { width: 100%; height: auto; }
figcaption { color: #555; font-size: .9rem; }
"""

_CAPTIONS = {
    "bounds": "The higher the bound, the closer the guide is to the posterior.",
    "ladder": "Bounds rise with the number of particles towards the log evidence. A line that "
    "still rises at its end has weights that cannot be relied on.",
    "k_hat": "How heavy the tail of the importance weights is.",
    "forest": "Where a guide's intervals leave those of the reference, it is wrong.",
    "sd_ratio": "Left of 1 a guide is surer than it should be, right of 1 less sure.",
    "marginals": "A guide's outline should follow the filled shape, where there is one.",
    "pairs": "Two latents together: a guide that ignores their dependence has a round cloud.",
    "gaps": "What the family costs, and what its source of parameters costs beyond it.",
    "calibration": "Inside the band a guide's intervals are right on data from the model.",
}


def page(
    choice: str,
    verdicts: Mapping[str, str],
    cells: Sequence[Sequence[str]],
    notes: Sequence[str],
    figures: Mapping[str, Figure],
) -> str:
    """Return the page.

    Args:
        choice: Which guide to use.
        verdicts: A sentence or two per guide.
        cells: Rows of the table, the first its header.
        notes: How to read the table.
        figures: Figures by name.
    """
    header = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in cells[0])
    rows = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in cells[1:]
    )
    listed = "".join(f"<li>{_text(verdict)}</li>" for verdict in verdicts.values())
    shown = "".join(
        f'<figure><img alt="{_text(_CAPTIONS.get(name, name))}" src="{_inline(figure)}">'
        f"<figcaption>{_text(_CAPTIONS.get(name, ''))}</figcaption></figure>"
        for name, figure in figures.items()
    )
    remarks = "".join(f"<p>{_text(note)}</p>" for note in notes)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Comparison of guides</title><style>{_STYLE}</style></head><body>"
        f'<h1>Comparison of guides</h1><p class="choice">{_text(choice)}</p>'
        f"<h2>Each guide</h2><ul>{listed}</ul>"
        f'<h2>Numbers</h2><div class="wide"><table><thead><tr>{header}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><div class="notes">{remarks}</div>'
        f'<h2>Figures</h2><div class="figures">{shown}</div></body></html>\n'
    )


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
