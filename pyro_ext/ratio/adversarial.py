"""The ELBO of a guide without a density: a critic stands in for log q."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext import bounds
from pyro_ext._checks import Pair
from pyro_ext._cited import references_of
from pyro_ext._run import held
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.ratio.contrast import CONTRASTS, Scene
from pyro_ext.ratio.counts import check_counts
from pyro_ext.ratio.critics import MLPCritic
from pyro_ext.ratio.estimate import RatioEstimate, kl_estimate, mean_and_variance, warn_of
from pyro_ext.ratio.latents import Elements
from pyro_ext.ratio.objective import Bound, Objective
from pyro_ext.ratio.trainer import CriticTrainer, Regularizer

__all__ = ["Adversarial"]

_AGREED = 0.1
_DRAWS = 4096  # of the latents of one element, in a pass
_SIGMAS = 3.0

Optim = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass
class _State:
    """What the loss learns of one pair: its elements and the critic."""

    pair: tuple[Any, Any] | None
    elements: Elements
    trainer: CriticTrainer
    rows: int
    dim: int

    def __getstate__(self) -> dict[str, Any]:
        """Let a copy belong to the pair that it meets first, which may be a copy, too."""
        return {**vars(self), "pair": None}

    def check(self, pair: Pair, owner: object) -> None:
        """Raise if the critic is that of another pair."""
        given = pair.model, pair.guide
        if self.pair is None:
            self.pair = given
        for side, known, now in zip(("model", "guide"), self.pair, given, strict=True):
            if known != now:  # a bound method is a new object each time, and equal
                ours, theirs = map(_name, self.pair)
                raise ValueError(
                    f"{owner!r}: expected the pair that the critic was trained for, of {ours!r} "
                    f"and {theirs!r}; got another {side}, {_name(now)!r}. Write: a new "
                    "px.Adversarial() for each pair."
                )


class Adversarial(BoundLoss):
    r"""ELBO whose log q is estimated by a critic, for guides that draw but cannot score.

    .. math::
        \mathcal{L} = \mathbb{E}_q \left[\log p(x \mid z) - T(x, z)\right], \qquad
        T \approx \log \frac{q(z \mid x)}{p(z)}

    At the best T the gradient by the guide goes through the draws alone, since
    :math:`\mathbb{E}_q \nabla \log q = 0`; parameters of the prior, which no critic knows, have
    that of log p(z). Each gradient that is asked of this object first trains the critic; without
    gradients it is frozen. The value is an estimate and no bound: a critic that underestimates
    log q / p puts it above the evidence. ``evaluate`` looks at that.

    The object holds the critic of one (model, guide) pair; take a new one for another.

    Args:
        num_particles: Number K of draws, for guide and critic.
        contrast: What the guide's draws are told from: ``"prior"``; ``"adaptive"``, the Gaussian
            of their own moments, which makes the ratio easy; ``"joint"``, the model's own latents
            and data (ALI, BiGAN); ``"aggregate"``, the prior, with a critic that does not see the
            data (adversarial autoencoder).
        critic: From the size of its input to a module that maps ``(*batch, size)`` to ``batch``.
        bound: What the critic climbs, as in ``px.ratio.DensityRatio``.
        critic_optim: From a list of parameters to the critic's optimizer; by default Adam at 1e-3.
        critic_steps: Steps of the critic before each gradient of the guide.
        warmup: Further steps before the first.
        regularizer: What holds the critic back.
        num_moments: Draws for the moments of ``"adaptive"``.
        joint: Whether all latents make one vector, also those in a data plate.

    Raises:
        ValueError: If an option is unknown or too small, or latents are inside a data plate and
            outside it, are discrete, or are drawn without a path for the gradient.

    References:
        Adversarial Variational Bayes (Mescheder, Nowozin and Geiger, 2017) |
        https://arxiv.org/abs/1701.04722
        Adversarially Learned Inference (Dumoulin et al., 2016) | https://arxiv.org/abs/1606.00704
        Adversarial Autoencoders (Makhzani et al., 2015) | https://arxiv.org/abs/1511.05644
        Adversarial Feature Learning (Donahue, Krähenbühl and Darrell, 2016) |
        https://arxiv.org/abs/1605.09782

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> loss = Adversarial(contrast="adaptive", warmup=200)
        >>> guide = px.AutoJoint(model)
        >>> _ = pyro.set_rng_seed(0)
        >>> gradient = loss.loss_and_grads(model, guide, torch.tensor(1.0))
        >>> loss
        Adversarial(num_particles=64, contrast='adaptive')
    """

    papers: ClassVar[tuple[str, ...]] = ("mescheder2017adversarial",)

    estimators: ClassVar[tuple[str, ...]] = ("adversarial",)
    needs_density: ClassVar[bool] = False
    chunks: ClassVar[bool] = False

    def __init__(
        self,
        num_particles: int = 64,
        *,
        contrast: str = "prior",
        critic: Callable[[int], nn.Module] | None = None,
        bound: str | Bound = "jsd",
        critic_optim: Optim | None = None,
        critic_steps: int = 2,
        warmup: int = 500,
        regularizer: Regularizer | None = None,
        num_moments: int = 512,
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator="adversarial", joint=joint)
        if contrast not in CONTRASTS:
            raise ValueError(
                f"Adversarial: expected contrast to be one of {list(CONTRASTS)}; got "
                f"{contrast!r}. Write: px.Adversarial(contrast='adaptive')."
            )
        Objective(bound)
        check_counts("Adversarial", least=0, critic_steps=critic_steps, warmup=warmup)
        check_counts("Adversarial", least=2, num_moments=num_moments)
        self.contrast, self.bound = contrast, bound
        self.critic_steps, self.warmup, self.num_moments = critic_steps, warmup, num_moments
        self.regularizer = regularizer
        self._make_critic = _default_critic if critic is None else critic
        self._critic_optim = _default_optim if critic_optim is None else critic_optim
        self._state: _State | None = None
        self._waiting: dict[str, Any] = {}

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Train the critic where gradients are on, and return minus the estimated ELBO.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Raises:
            ValueError: If the critic was trained for another pair, or not at all and there are no
                gradients; if model and guide do not match.
        """
        scene = self._scene(Pair(model, guide, args, kwargs))
        self._take_up(scene)
        if torch.is_grad_enabled():
            steps = self.critic_steps
            if self._state is None:
                self._state, steps = self._new_state(scene), steps + self.warmup
            self._climb(scene, self._state, steps)
        elif self._state is None:
            raise ValueError(
                f"{self!r}: expected a critic that was trained; got no step yet. Write: "
                "loss.evaluate(model, guide, *args), which trains one of its own."
            )
        return -self._bound(self._log_w(scene, self._state))

    def evaluate(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        num_particles: int = 2000,
        num_steps: int = 2000,
        **kwargs: Any,
    ) -> RatioEstimate:
        """Estimate the ELBO with guide and model frozen, by a critic trained further for that.

        A copy of the critic (a new one, if there is none) is trained with its learning rate on a
        cosine down to zero; the estimate is of draws that it has not seen. With the contrast
        ``"prior"`` another critic estimates the same by ``"adaptive"``: an error of the critic is
        not in the standard error, but two contrasts seldom make the same one.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            num_particles: Draws of the estimate, and of the moments of ``"adaptive"``.
            num_steps: Steps of the critic.
            **kwargs: Keyword arguments of both.

        Returns:
            The estimate, with doubts where the ratio is beyond the samples, or where the contrasts
            disagree by more than 0.1 nats and three standard errors; then it warns too.

        Raises:
            ValueError: If the critic was trained for another pair, or a number is too small.
        """
        check_counts("Adversarial.evaluate", least=1, num_steps=num_steps)
        check_counts("Adversarial.evaluate", least=2, num_particles=num_particles)
        pair = Pair(model, guide, args, kwargs)
        self._take_up(self._scene(pair))
        kept = None if self._state is None else self._state.trainer.critic.state_dict()
        found = self._estimate(pair, self.contrast, kept, num_particles, num_steps)
        if self.contrast == "prior":
            other = self._estimate(pair, "adaptive", None, num_particles, num_steps)
            gap = abs(found.value - other.value)
            if gap > max(_AGREED, _SIGMAS * math.hypot(found.se, other.se)):
                doubt = f"contrast='adaptive' says {other.value:.2f} ± {other.se:.2f}"
                found = replace(found, doubts=(*found.doubts, doubt))
        warn_of(found, "Use contrast='adaptive', which leaves the critic less to find")
        return found

    def _estimate(
        self,
        pair: Pair,
        contrast: str,
        critic: dict[str, Any] | None,
        num_particles: int,
        num_steps: int,
    ) -> RatioEstimate:
        scene = self._scene(pair, contrast, max(self.num_moments, num_particles))
        state = self._new_state(scene)
        if critic is not None:
            state.trainer.critic.load_state_dict(critic)
        schedule = CosineAnnealingLR(state.trainer.optimizer, num_steps)
        self._climb(scene, state, num_steps, schedule)
        with torch.no_grad():
            state.trainer.settle(self._inputs(scene, state, num_particles)[1])
            value, square = mean_and_variance(self._log_w(scene, state, num_particles))
            inputs = self._inputs(scene, state, num_particles)
            doubts = kl_estimate(*(state.trainer.log_ratio(x) for x in inputs)).doubts
        what = CONTRASTS[contrast].what
        return RatioEstimate(float(value), float(square.sqrt()), what, num_particles, doubts)

    def training_state(self) -> dict[str, Any]:
        """Return a copy of the critic with its optimizer, for a checkpoint."""
        if self._state is None:
            return copy.deepcopy(self._waiting)
        trainer = self._state.trainer
        return copy.deepcopy(
            {
                "critic": trainer.critic.state_dict(),
                "optimizer": trainer.optimizer.state_dict(),
                "log_average": trainer.objective.log_average,
                "count": trainer.count,
            }
        )

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take over a critic, which needs no warm-up then.

        Args:
            state: What ``training_state`` returned. Before this object has seen its pair, the
                critic waits for that.
        """
        self._waiting = copy.deepcopy(state)
        known, self._state = self._state, None
        if known is not None and state:
            self._restore(known)

    def _take_up(self, scene: Scene) -> None:
        """Make a critic of what was loaded, if that waits for its pair."""
        if self._waiting:
            with torch.random.fork_rng(devices=()):
                new = self._new_state(scene)
            self._restore(new)

    def _restore(self, state: _State) -> None:
        """Let a critic be what was loaded."""
        saved, self._waiting = self._waiting, {}
        trainer, self._state = state.trainer, state
        trainer.critic.load_state_dict(saved["critic"])
        trainer.optimizer.load_state_dict(saved["optimizer"])
        trainer.objective.log_average, trainer.count = saved["log_average"], saved["count"]

    def _scene(
        self, pair: Pair, contrast: str | None = None, num_moments: int | None = None
    ) -> Scene:
        known = self._state
        if known is not None:
            known.check(pair, self)
        elements = Elements(pair, joint=self.joint) if known is None else known.elements
        return Scene(
            pair,
            elements,
            CONTRASTS[self.contrast if contrast is None else contrast],
            num=self.num_particles,
            num_moments=self.num_moments if num_moments is None else num_moments,
        )

    def _new_state(self, scene: Scene) -> _State:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            example = scene.critic_inputs(2)[0]
        rows, dim = example.shape[0] // 2, example.shape[1]
        with torch.device("cpu"):  # a seed then means the same on each device
            critic = self._make_critic(dim)
        critic = critic.to(example)
        trainer = CriticTrainer(
            critic, Objective(self.bound), self._critic_optim, self.regularizer
        )
        of = scene.pair.model, scene.pair.guide
        return _State(of, scene.elements, trainer, rows, dim)

    def _climb(
        self,
        scene: Scene,
        state: _State,
        num_steps: int,
        schedule: CosineAnnealingLR | None = None,
    ) -> None:
        """Train the critic; draws of several steps come in one pass, as nothing else changes."""
        at_once = max(1, _DRAWS // (self.num_particles * state.rows))
        for start in range(0, num_steps, at_once):
            count = min(at_once, num_steps - start)
            inputs = self._inputs(scene, state, count * self.num_particles)
            for x_q, x_other in zip(*(x.chunk(count) for x in inputs), strict=True):
                state.trainer.step(x_q, x_other)
                if schedule is not None:
                    schedule.step()

    def _inputs(
        self, scene: Scene, state: _State, num: int | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs = scene.critic_inputs(num)
        if inputs[0].shape[-1] != state.dim:
            raise ValueError(
                f"{self!r}: expected elements as the critic was trained for, of {state.dim} "
                f"numbers; got {inputs[0].shape[-1]}. Write: a new px.Adversarial() for data of "
                "another size."
            )
        return inputs

    def _log_w(self, scene: Scene, state: _State, num: int | None = None) -> Tensor:
        trained = [param for param in state.trainer.critic.parameters() if param.requires_grad]
        with held(trained):
            return scene.log_w(state.trainer.log_ratio, num)

    def _papers_in_use(self) -> Iterable[str]:
        return (
            *CONTRASTS[self.contrast].papers,
            *references_of(Objective(self.bound), self.regularizer),
        )

    def _options(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "contrast": self.contrast}

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.elbo(log_weights)


def _name(fn: Any) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


def _default_critic(dim: int) -> nn.Module:
    return MLPCritic(dim, hidden=(128, 128), quadratic=True)


def _default_optim(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3)
