"""Draw the picture of the start page: `python docs/figures/one_quantity.py`."""

from pathlib import Path

SIZE = (680, 560)
INK, PALE, LINE = "#1f2937", "#6b7280", "#94a3b8"
FILLS = {"given": "#e0f2fe", "made": "#ffffff", "middle": "#fef3c7"}
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
    'font-family="system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif" '
    'role="img" aria-label="Model and guide give log weights; bounds, diagnostics and ratios '
    'are functions of them">'
)
ARROW = (
    f'<marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
    f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{LINE}"/></marker>'
)


def box(x: float, y: float, width: float, height: float, fill: str, lines: list[str]) -> str:
    """Return a box with a title and smaller lines below it, all centred."""
    drawn = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{FILLS[fill]}" '
        f'stroke="{LINE}" stroke-width="1.5"/>'
    ]
    top = y + height / 2 - 11 * (len(lines) - 1) + 6
    for i, line in enumerate(lines):
        size, weight, ink = (20, 600, INK) if i == 0 else (16, 400, PALE)
        drawn.append(
            f'<text x="{x + width / 2}" y="{top + 23 * i:g}" text-anchor="middle" '
            f'font-size="{size}" font-weight="{weight}" fill="{ink}">{line}</text>'
        )
    return "\n".join(drawn)


def arrow(*points: tuple[float, float]) -> str:
    """Return a line through the points with a head at its end."""
    path = " ".join(f"{'ML'[i > 0]}{x} {y}" for i, (x, y) in enumerate(points))
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="2" marker-end="url(#a)"/>'


def picture() -> str:
    """Return the picture as SVG."""
    parts = [
        HEAD.format(*SIZE),
        f"<defs>{ARROW}</defs>",
        f'<rect width="{SIZE[0]}" height="{SIZE[1]}" rx="14" fill="#f8fafc"/>',
        box(20, 24, 196, 92, "given", ["your model", "log p(x, z)"]),
        box(242, 24, 196, 92, "given", ["guide", "family × source", "log q(z | x)"]),
        box(
            464,
            24,
            196,
            92,
            "given",
            ["critic", "log p/q from samples", "if q has no density"],
        ),
        arrow((118, 116), (118, 184)),
        arrow((340, 116), (340, 184)),
        arrow((562, 116), (562, 184)),
        box(
            60,
            188,
            560,
            104,
            "middle",
            [
                "log w_k = log p(x, z_k) − log q(z_k | x)",
                "k = 1..K draws of the guide,",
                "one row for each datum",
            ],
        ),
        arrow((170, 292), (170, 350)),
        arrow((510, 292), (510, 350)),
        box(20, 354, 300, 80, "made", ["bounds", "ELBO, IWAE, Rényi, CUBO, ..."]),
        box(360, 354, 300, 80, "made", ["diagnostics", "k̂, evidence, gaps, LOO, ..."]),
        arrow((170, 434), (170, 466)),
        arrow((510, 434), (510, 466)),
        box(20, 470, 300, 70, "given", ["loss", "for Pyro's SVI, or px.fit"]),
        box(360, 470, 300, 70, "given", ["verdict", "a table, and ArviZ"]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
