import math

import pytest
import torch

from models import dirac_gan
from pyro_ext import ratio as pr

ORIGIN, START = torch.zeros(2), torch.ones(2)
GAMMAS = (0.0, 0.3, 1.0, 2.0)
NORMS = {  # after 500 steps of size 0.2 from (1, 1)
    (0.0, False): 3.0969,
    (0.3, False): 2.643e-6,
    (1.0, False): 9.53e-22,
    (0.0, True): 1.42102,
    (0.3, True): 2.30e-7,
    (1.0, True): 7.48e-17,
}
PUBLISHED = {  # eigenvalues at the origin
    0.0: (0.5j, -0.5j),
    0.3: (-0.15 + 0.4769696j, -0.15 - 0.4769696j),
    1.0: (-0.5, -0.5),
    2.0: (-0.1339746, -1.8660254),
}


def ordered(values):
    return sorted((complex(v) for v in values), key=lambda v: (round(v.real, 7), v.imag))


def same(found, expected, tolerance=1e-6):
    pairs = zip(ordered(found), ordered(expected), strict=True)
    return all(abs(one - other) < tolerance for one, other in pairs)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_eigenvalues_of_the_velocity_field(gamma):
    found = dirac_gan.game(gamma=gamma).stability(ORIGIN)
    assert same(found.eigenvalues, dirac_gan.eigenvalues(gamma))
    assert same(found.eigenvalues, PUBLISHED[gamma])
    assert found.verdict == ("stable" if gamma else "undecided")


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_affine_critic_has_the_further_eigenvalue(gamma):
    game = dirac_gan.game(gamma=gamma, affine=True)
    point = game.stationary_point(torch.tensor([0.3, 0.1, 0.2]))
    torch.testing.assert_close(point, torch.zeros(3), atol=1e-9, rtol=0)
    found = game.stability(torch.zeros(3))
    assert same(found.eigenvalues, (*PUBLISHED[gamma], -0.5))


def test_critical_penalty():
    low, high = dirac_gan.eigenvalues(dirac_gan.CRITICAL_GAMMA)
    assert low == high == -0.5
    rates = {g: max(e.real for e in dirac_gan.eigenvalues(g)) for g in (0.9, 1.0, 1.1)}
    assert min(rates, key=rates.__getitem__) == 1.0  # no other converges as fast
    assert dirac_gan.eigenvalues(0.9)[0].imag > 0 == dirac_gan.eigenvalues(1.1)[0].imag


@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_eigenvalues_of_a_step(gamma, alternating):
    found = dirac_gan.game(gamma=gamma).step_stability(
        ORIGIN, step_size=0.2, alternating=alternating
    )
    assert same(found.eigenvalues, dirac_gan.step_eigenvalues(gamma, alternating=alternating))
    expected = "stable" if gamma else ("undecided" if alternating else "unstable")
    assert found.verdict == expected


@pytest.mark.parametrize(("gamma", "alternating"), NORMS)
def test_norm_after_500_steps(gamma, alternating):
    path = dirac_gan.game(gamma=gamma).trajectory(
        START, step_size=0.2, num_steps=500, alternating=alternating
    )
    expected = NORMS[gamma, alternating]
    digits = len(f"{expected:e}".split("e")[0].rstrip("0").replace(".", ""))
    found = float(path[-1].norm())
    assert float(f"{found:.{digits - 1}e}") == pytest.approx(expected, rel=1e-9)


def test_alternating_steps_stay_on_the_circle_up_to_size_four():
    game = dirac_gan.game()
    for size, verdict in ((3.99, "undecided"), (4.01, "unstable")):
        found = game.step_stability(ORIGIN, step_size=size, alternating=True)
        assert found.verdict == verdict
        assert (abs(found.growth) < 1e-9) == (verdict == "undecided")


def test_the_unregularized_flow_keeps_its_energy():
    """d/dt (ψ² + θ²) = 0: the velocity is at right angles to the state."""
    game = dirac_gan.game()
    for state in torch.randn(20, 2):
        assert float(game.velocity(state) @ state) == pytest.approx(0, abs=1e-12)
        speed = float(game.velocity(state).norm() / state.norm())
        assert speed == pytest.approx(1 / (1 + math.exp(float(state[0] * state[1]))))


def test_phase_portrait():
    game = dirac_gan.game(gamma=0.3)
    path = game.trajectory(START, step_size=0.2, num_steps=50)
    figure = pr.phase_portrait(game, {"simultaneous": path}, title="R1, γ = 0.3")
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_label() == "simultaneous")
    assert line.get_xdata()[-1] == pytest.approx(float(path[-1, 1]))
    assert line.get_ydata()[-1] == pytest.approx(float(path[-1, 0]))
