"""Dirac-GAN: eigenvalues and trajectories beside their closed forms, and phase portraits.

Prints a Markdown table and writes `docs/figures/dirac_gan_plain.png` and `dirac_gan_r1.png`:

    python benchmarks/dirac_gan.py
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pyro_ext as px  # noqa: E402
from models import dirac_gan  # noqa: E402

__all__ = ["main", "table"]

GAMMAS = (0.0, 0.3, 1.0)
STEP = 0.2
START = (1.0, 1.0)


def path(gamma: float, *, alternating: bool, num_steps: int = 500) -> torch.Tensor:
    """Return a trajectory from (1, 1)."""
    start = torch.tensor(START, dtype=torch.float64)
    return dirac_gan.game(gamma=gamma).trajectory(
        start, step_size=STEP, num_steps=num_steps, alternating=alternating
    )


def table() -> str:
    """Return the table as Markdown."""
    origin = torch.zeros(2, dtype=torch.float64)
    lines = [
        "| γ | eigenvalues of the field | verdict | steps | largest factor a step | closed form "
        "| verdict | norm after 500 |",
        "| --: | :-- | :-- | :-- | --: | --: | :-- | --: |",
    ]
    for gamma in GAMMAS:
        game = dirac_gan.game(gamma=gamma)
        field = game.stability(origin)
        first = complex(field.eigenvalues[0])
        for alternating in (False, True):
            step = game.step_stability(origin, step_size=STEP, alternating=alternating)
            closed = dirac_gan.step_eigenvalues(gamma, step_size=STEP, alternating=alternating)
            norm = float(path(gamma, alternating=alternating)[-1].norm())
            lines.append(
                f"| {gamma} | {first.real + 0.0:.5f} ± {abs(first.imag):.5f}i | {field.verdict} "
                f"| {'alternating' if alternating else 'simultaneous'} "
                f"| {float(step.eigenvalues.abs().max()):.6f} | {max(map(abs, closed)):.6f} "
                f"| {step.verdict} | {norm:.4g} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table and draw the portraits."""
    print(table())
    for gamma in (0.0, 0.3):
        paths = {
            name: path(gamma, alternating=alternating, num_steps=100)
            for name, alternating in (("simultaneous", False), ("alternating", True))
        }
        title = f"Dirac-GAN, R1 penalty γ = {gamma}"
        game = dirac_gan.game(gamma=gamma)
        figure = px.ratio.phase_portrait(game, paths, limit=2.5, title=title)
        name = f"dirac_gan_{'plain' if gamma == 0 else 'r1'}.png"
        figure.savefig(ROOT / "docs" / "figures" / name, dpi=110)


if __name__ == "__main__":
    main()
