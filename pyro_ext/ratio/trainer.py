"""One step of a critic: climb a bound, held back by regularizers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_ext._cited import Cited
from pyro_ext._modules import evaluated
from pyro_ext.ratio.counts import check_counts
from pyro_ext.ratio.objective import Objective

__all__ = ["CriticTrainer", "Regularizer", "outputs_of", "r1_penalty"]


def outputs_of(critic: nn.Module, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch"]:
    """Return a critic's outputs, one number for each x.

    Args:
        critic: From ``(*batch, dim)`` to ``batch``.
        x: Where, shape ``(*batch, dim)``.

    Raises:
        ValueError: If it gives another shape.
    """
    outputs: Tensor = critic(x)
    if outputs.shape != x.shape[:-1]:
        raise ValueError(
            f"critic: expected one number for each x, shape {tuple(x.shape[:-1])}; got shape "
            f"{tuple(outputs.shape)}. Write: return net(x).squeeze(-1) in the critic's forward, "
            f"or px.ratio.MLPCritic({x.shape[-1]})."
        )
    return outputs


def r1_penalty(
    critic: Callable[[Tensor], Tensor], x: Float[Tensor, " *batch dim"]
) -> Float[Tensor, ""]:
    r"""Return the R1 penalty: half the mean squared slope of the critic.

    .. math:: \tfrac12 \mathbb{E}_p \lVert \nabla_x T(x) \rVert^2

    Args:
        critic: From ``(*batch, dim)`` to ``batch``.
        x: Where, shape ``(*batch, dim)``.

    References:
        Which Training Methods for GANs do actually Converge? (Mescheder, Geiger and Nowozin,
        2018) | https://arxiv.org/abs/1801.04406

    Example:
        >>> r1_penalty(lambda x: 3 * x.sum(-1), torch.zeros(5, 2))
        tensor(9.)
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return slope.square().sum(-1).mean() / 2


@dataclass(frozen=True)
class Regularizer(Cited):
    """What keeps a critic from being too sure; spectral norms are an option of the critic.

    Args:
        r1: Factor γ of the R1 penalty on samples of p.
        weight_decay: Weight decay of the optimizer, decoupled (AdamW).
        noise: Standard deviation of noise added to all samples (instance noise). While it lasts
            the ratio is that of the blurred distributions.
        noise_steps: Steps over which the noise falls to zero; None to keep it.

    Raises:
        ValueError: If a number is negative, or ``noise_steps`` is not positive.

    References:
        Amortised MAP Inference for Image Super-resolution (Sønderby et al., 2016) |
        https://arxiv.org/abs/1610.04490

    Example:
        >>> held = px.ratio.DensityRatio(px.ratio.MLPCritic(2), regularizer=Regularizer(r1=0.1))
        >>> Regularizer(noise=0.5, noise_steps=100).noise_at(50)
        0.25
    """

    r1: float = 0.0
    weight_decay: float = 0.0
    noise: float = 0.0
    noise_steps: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("r1", "weight_decay", "noise"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(
                    f"Regularizer: expected {name} >= 0; got {value}. Write: {name}=0.1."
                )
        if self.noise_steps is not None:
            check_counts("Regularizer", least=1, noise_steps=self.noise_steps)

    def _papers_in_use(self) -> Iterable[str]:
        used = {"mescheder2018training": self.r1, "sonderby2017amortised": self.noise}
        return (paper for paper, amount in used.items() if amount)

    def noise_at(self, step: int) -> float:
        """Return the standard deviation of the noise at a step.

        Args:
            step: The step, from 0.
        """
        if self.noise_steps is None:
            return self.noise
        return self.noise * max(0.0, 1 - step / self.noise_steps)


class CriticTrainer:
    """A critic with its objective, its own optimizer and its regularizers.

    Args:
        critic: From ``(batch, dim)`` to ``batch``.
        objective: What it climbs.
        optim: From a list of parameters to a torch optimizer; by default Adam at 3e-3.
        regularizer: What holds it back.

    Example:
        >>> trainer = CriticTrainer(px.ratio.QuadraticCritic(1), px.ratio.Objective("jsd"))
        >>> bound = trainer.step(1 + torch.randn(64, 1), torch.randn(64, 1))
        >>> trainer.log_ratio(torch.zeros(5, 1)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        critic: nn.Module,
        objective: Objective,
        optim: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
        regularizer: Regularizer | None = None,
    ) -> None:
        self.critic, self.objective = critic, objective
        self.regularizer = regularizer or Regularizer()
        params: list[Tensor] = list(critic.parameters())
        decay = self.regularizer.weight_decay
        self.optimizer = (
            torch.optim.AdamW(params, lr=3e-3, weight_decay=decay)
            if optim is None
            else optim(params)
        )
        if optim is not None and decay:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = decay
        self.count = 0

    def step(self, x_p: Float[Tensor, " num_p dim"], x_q: Float[Tensor, " num_q dim"]) -> Tensor:
        """Take one step on samples of p and of q; return the bound.

        Args:
            x_p: Samples of p, shape ``(num_p, dim)``.
            x_q: Samples of q, shape ``(num_q, dim)``.
        """
        sd = self.regularizer.noise_at(self.count)
        x_p, x_q = x_p.detach(), x_q.detach()
        if sd:
            x_p, x_q = x_p + sd * torch.randn_like(x_p), x_q + sd * torch.randn_like(x_q)
        with torch.enable_grad():
            outputs = outputs_of(self.critic, torch.cat([x_p, x_q]))
            bound = self.objective(outputs[: len(x_p)], outputs[len(x_p) :])
            loss = -bound
            if self.regularizer.r1:
                loss = loss + self.regularizer.r1 * r1_penalty(self.critic, x_p)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        self.count += 1
        return bound.detach()

    def log_ratio(self, x: Float[Tensor, " *batch dim"]) -> Float[Tensor, " *batch"]:
        """Return the critic's log p/q.

        Args:
            x: Where, shape ``(*batch, dim)``.
        """
        with evaluated(self.critic):
            return self.objective.log_ratio(outputs_of(self.critic, x))

    def settle(self, x_q: Float[Tensor, " num_q dim"]) -> None:
        """Fix the constant that the objective leaves open, see ``Objective.settle``.

        Args:
            x_q: Samples of q, shape ``(num_q, dim)``.
        """
        with evaluated(self.critic):
            self.objective.settle(outputs_of(self.critic, x_q))
