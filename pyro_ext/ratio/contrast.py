"""What a guide's draws are told from, and what that leaves of the ELBO."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_ext._checks import Pair
from pyro_ext._modules import leaves_of
from pyro_ext.ratio.latents import Draws, Elements

__all__ = ["CONTRASTS", "Contrast", "Scene"]

LogRatio = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Contrast:
    """One way to contrast q with something known.

    Args:
        what: What the estimate is then.
        own_moments: Whether draws are whitened by their own moments, and told from white noise.
        sees_data: Whether the critic sees the data of each element.
        dreams: Whether the other side has the model's data too.
        papers: What to cite for it, besides adversarial variational Bayes.
    """

    what: str
    own_moments: bool = False
    sees_data: bool = True
    dreams: bool = False
    papers: tuple[str, ...] = ()


_ELBO = "adversarial estimate of the ELBO, no bound"

CONTRASTS = {
    "prior": Contrast(_ELBO),
    "adaptive": Contrast(_ELBO, own_moments=True),
    "joint": Contrast(
        "adversarial estimate of -KL(q(x, z)‖p(x, z)), no bound",
        dreams=True,
        papers=("dumoulin2017adversarially", "donahue2017adversarial"),
    ),
    "aggregate": Contrast(
        "adversarial estimate of the ELBO with KL(q(z)‖p(z)) for KL(q(z|x)‖p(z)), no bound",
        sees_data=False,
        papers=("makhzani2015adversarial",),
    ),
}


class Scene:
    """A pair with a contrast: what the critic is shown, and the log weights that it leads to.

    Args:
        pair: Model, guide and arguments.
        elements: The pair's independent elements.
        contrast: The contrast.
        num: Number of draws.
        num_moments: Number of draws behind the moments.
    """

    def __init__(
        self, pair: Pair, elements: Elements, contrast: Contrast, *, num: int, num_moments: int
    ) -> None:
        self.pair, self.elements, self.contrast = pair, elements, contrast
        self._num, self._num_moments = num, num_moments
        self._known: tuple[Draws, _Moments] | None = None

    def critic_inputs(self, num: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what the critic sees of q and of the other side, shape ``(samples, size)`` each.

        Args:
            num: Number of draws of each element.
        """
        num = self._num if num is None else num
        with torch.no_grad():
            drawn = self.elements.from_guide(self.pair, num)
            if self.contrast.own_moments:
                z = self._moments(drawn).whiten(drawn.z)
                ours, theirs = self._join(z, drawn), self._join(torch.randn_like(z), drawn)
            else:
                other = self.elements.from_model(self.pair, num, dream=self.contrast.dreams)
                ours, theirs = self._join(drawn.z, drawn), self._join(other.z, other)
        return ours.flatten(0, 1), theirs.flatten(0, 1)

    def log_w(self, log_ratio: LogRatio, num: int | None = None) -> Float[Tensor, " draws"]:
        """Return estimated log weights of fresh draws, whose mean is the estimate.

        Args:
            log_ratio: The critic, its parameters held.
            num: Number of draws.
        """
        num = self._num if num is None else num
        drawn = self.elements.from_guide(self.pair, num)
        if self.contrast.own_moments:
            moments = self._moments(drawn)
            t = log_ratio(self._join(moments.whiten(drawn.z), drawn))
            log_q = drawn.scale * (t + moments.log_prob(drawn.z)).sum(-1)
            return drawn.log_likelihood + drawn.log_prior - log_q
        log_q_p = drawn.scale * log_ratio(self._join(drawn.z, drawn)).sum(-1)
        if not self.contrast.dreams:
            return drawn.log_likelihood - log_q_p + _pull_of_prior(drawn)
        return self._model_pull(log_ratio, num) - log_q_p

    def _model_pull(self, log_ratio: LogRatio, num: int) -> Tensor:
        """Return zeros whose gradient pulls the model's own draws to where the guide's are."""
        dreamed = self.elements.from_model(self.pair, num, dream=True)
        pull = dreamed.scale * log_ratio(self._join(dreamed.z, dreamed)).sum(-1)
        learns = dreamed.log_likelihood.requires_grad or dreamed.log_prior.requires_grad
        if learns and not pull.requires_grad:
            raise ValueError(
                "Adversarial: expected data that the model draws by reparameterization, for its "
                "parameters to learn by contrast='joint'; got none. Write: contrast='prior', or "
                "px.fit(..., train='guide')."
            )
        return pull - pull.detach()

    def _join(self, z: Tensor, draws: Draws) -> Tensor:
        return torch.cat([z, draws.data], -1) if self.contrast.sees_data else z

    def _moments(self, drawn: Draws) -> "_Moments":
        """Return moments of the same elements; the same each time, for the critic to know them.

        Drawn anew they leave log q too low by about D (D + 3) / (4 num_moments).
        """
        if self._known is not None:
            before, moments = self._known
            if self.elements.single or before.same_batch(drawn):
                return moments
        with torch.no_grad():
            own = self.elements.from_guide(self.pair, self._num_moments, batch=drawn.batch)
            z = own.z
            if len(z) <= z.shape[-1]:
                raise ValueError(
                    f"Adversarial: expected num_moments above the {z.shape[-1]} numbers of an "
                    f"element's latents, for moments with an inverse; got {len(z)}. Write: "
                    f"num_moments={100 * z.shape[-1]}."
                )
            centred = z - z.mean(0)
            covariance = torch.einsum("kbi,kbj->bij", centred, centred) / len(z)
            floor = covariance.diagonal(dim1=-2, dim2=-1).mean(-1) * 1e-6 + 1e-12
            eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
            factor = torch.linalg.cholesky(covariance + floor[:, None, None] * eye)
        self._known = (own, _Moments(z.mean(0), factor))
        return self._known[1]


def _pull_of_prior(drawn: Draws) -> Tensor:
    r"""Return a zero whose gradient is that of the prior's parameters, which no critic has.

    .. math:: \nabla_\theta \mathbb{E}_q [-T] = \mathbb{E}_q \nabla_\theta \log p_\theta(z),
        \qquad T = \log q / p_\theta

    The draws' own gradient goes through T: what they depend on is left out here.
    """
    of_draws = leaves_of(drawn.z)
    own = [leaf for key, leaf in leaves_of(drawn.log_prior).items() if key not in of_draws]
    zero = drawn.log_prior.new_zeros(())
    if not own:
        return zero
    grads = torch.autograd.grad(drawn.log_prior.mean(), own, retain_graph=True)
    pull = torch.stack([(leaf * grad).sum() for leaf, grad in zip(own, grads, strict=True)]).sum()
    return pull - pull.detach()


@dataclass(frozen=True)
class _Moments:
    """Mean and Cholesky factor of each element's draws, from draws of their own."""

    loc: Tensor
    factor: Tensor

    def whiten(self, z: Tensor) -> Tensor:
        centred = (z - self.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).squeeze(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        return MultivariateNormal(self.loc, scale_tril=self.factor).log_prob(z)
