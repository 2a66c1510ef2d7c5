import pytest
import torch

from pyro_ext import ratio as pr

A = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
B = torch.tensor([[0.3], [-0.7]])
C = torch.tensor([[1.5]])
B_PSI, B_THETA = torch.tensor([1.0, -1.0]), torch.tensor([0.4])


def quadratic(sign):
    """Two ψ and one θ; θ's loss is that of ψ with another sign of the coupling."""

    def losses(psi, theta):
        coupling = psi @ B @ theta
        of_psi = psi @ A @ psi / 2 + coupling + B_PSI @ psi
        return of_psi, theta @ C @ theta / 2 + sign * coupling + B_THETA @ theta

    return pr.Game(losses, num_psi=2)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_quadratic_game(sign):
    game, state = quadratic(sign), torch.randn(3)
    top, bottom = torch.cat([A, B], 1), torch.cat([sign * B.T, C], 1)
    jacobian = -torch.cat([top, bottom])
    offset = torch.cat([B_PSI, B_THETA])
    torch.testing.assert_close(game.velocity(state), jacobian @ state - offset)
    torch.testing.assert_close(game.jacobian(state), jacobian)
    point = torch.linalg.solve(jacobian, offset)
    torch.testing.assert_close(game.stationary_point(state), point)
    found = game.stability(point)
    assert found.verdict == "stable"
    torch.testing.assert_close(
        found.eigenvalues.real.sort()[0], torch.linalg.eigvals(jacobian).real.sort()[0]
    )
    step = torch.eye(3) + 0.1 * jacobian
    by_step = game.step_stability(point, step_size=0.1)
    assert by_step.growth == pytest.approx(float(torch.linalg.eigvals(step).abs().max().log()))


def test_alternating_step_is_two_half_steps():
    game, state = quadratic(-1.0), torch.randn(3)
    moved = state.clone()
    moved[2] += 0.3 * game.velocity(state)[2]
    both = moved.clone()
    both[:2] += 0.3 * game.velocity(moved)[:2]
    torch.testing.assert_close(game.step(state, step_size=0.3, alternating=True), both)


def test_trajectory_holds_every_state():
    game, start = quadratic(1.0), torch.randn(3)
    path = game.trajectory(start, step_size=0.1, num_steps=4)
    assert path.shape == (5, 3)
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[4], game.step(path[3], step_size=0.1))


def test_newton_finds_a_point_of_a_line_and_of_a_curved_field():
    game = pr.Game(lambda psi, theta: ((psi - theta).square().sum(), 0 * theta.sum()), num_psi=1)
    point = game.stationary_point(torch.tensor([3.0, 1.0]))
    assert float(point[0]) == pytest.approx(float(point[1]))
    curved = pr.Game(
        lambda psi, theta: (torch.cosh(psi - 1).sum(), torch.cosh(2 * theta).sum()), num_psi=1
    )
    point = curved.stationary_point(torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(point, torch.tensor([1.0, 0.0]), atol=1e-9, rtol=0)


def test_newton_takes_the_steps_that_it_was_given_and_single_precision():
    linear = pr.Game(
        lambda psi, theta: (
            ((psi - 1) ** 2 + psi * theta).sum(),
            ((theta + 2) ** 2 - psi * theta).sum(),
        ),
        num_psi=1,
    )
    for dtype in (torch.float32, torch.float64):
        start = torch.zeros(2, dtype=dtype)
        found = linear.stationary_point(start, num_steps=1)  # of a linear field: there at once
        rounding = 100 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            found, torch.tensor([1.6, -1.2], dtype=dtype), rtol=0, atol=rounding
        )
    # Any point will do where the tolerance is above its velocity, and one step where it is wide.
    near = linear.stationary_point(torch.full((2,), 9.0), tolerance=1.0)
    assert float(linear.velocity(near).norm()) <= 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step_size", [0.1, 0.2, 0.3, 0.5, 0.7])
def test_circles_are_undecided_in_either_precision(dtype, step_size):
    circles = pr.Game(lambda psi, theta: ((psi * theta).sum(), -(psi * theta).sum()), num_psi=1)
    origin = torch.zeros(2, dtype=dtype)
    assert circles.stability(origin).verdict == "undecided"
    found = circles.step_stability(origin, step_size=step_size, alternating=True)
    assert found.verdict == "undecided"
    assert circles.step_stability(origin, step_size=step_size).verdict == "unstable"


@pytest.mark.parametrize(("num_psi", "shape"), [(1, (1,)), (1, (2, 2)), (0, (2,))], ids=str)
def test_a_state_without_one_of_the_players(num_psi, shape):
    game = pr.Game(lambda psi, theta: (psi.sum() ** 2, theta.sum() ** 2), num_psi=num_psi)
    with pytest.raises(ValueError, match=r"Game: expected a state .* as one vector.*Write: torch"):
        game.velocity(torch.zeros(shape))


def test_no_stationary_point():
    game = pr.Game(lambda psi, theta: (psi.sum(), theta.sum()), num_psi=1)
    with pytest.raises(RuntimeError, match=r"a velocity below .*Write: .* from elsewhere"):
        game.stationary_point(torch.zeros(2))


def test_velocity_of_a_plain_state_holds_no_graph():
    game, state = quadratic(1.0), torch.randn(3)
    assert not game.velocity(state).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(game.velocity(state), game.velocity(state))


def test_phase_portrait_draws_every_trajectory():
    game = pr.Game(lambda psi, theta: (-(psi * theta).sum(), (psi * theta).sum()), num_psi=1)
    paths = {
        str(number): game.trajectory(torch.full((2,), 0.1 * number), step_size=0.1, num_steps=2)
        for number in range(1, 9)
    }
    legend = pr.phase_portrait(game, paths).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(paths)


def test_phase_portrait_needs_two_numbers():
    with pytest.raises(ValueError, match=r"expected one ψ and one θ; got 2 ψ.*norm\(dim=1\)"):
        pr.phase_portrait(quadratic(1.0), {})
