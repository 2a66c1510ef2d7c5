"""The processes that share a fit, each with its part of every batch."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

__all__ = ["Ranks"]


class Ranks:
    """All processes of the default group of ``torch.distributed``; one alone where there is none.

    Each has the gradient of its own part of a batch; the gradient of the batch is their mean,
    weighted by the shares of the parts.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        share: Share of this process in the batch of the step; those of all sum to one.
        blamed: Processes whose own loss or gradient was not finite in the last step.
        trained: The parameters that have gradients, in the same order in each process.

    Raises:
        ValueError: If ``torchrun`` has started several, and they form no group.
    """

    def __init__(self) -> None:
        self.rank, self.size, self.share = 0, 1, 1.0
        self.blamed: list[int] = []
        self.trained: Sequence[Tensor] = ()
        self._device = torch.device("cpu")
        if not distributed.is_available():
            return
        if distributed.is_initialized():
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
            if "gloo" not in str(distributed.get_backend()):
                self._device = torch.device("cuda", torch.cuda.current_device())
        elif distributed.is_torchelastic_launched():
            raise ValueError(
                "fit: expected the processes that torchrun started to form a group; got none, so "
                "that each would fit on its own. Write: torch.distributed.init_process_group() "
                "before px.fit."
            )

    @property
    def elsewhere(self) -> int | None:
        """The first process that is to blame where this one is not; None if it is, or none is."""
        return None if not self.blamed or self.rank in self.blamed else self.blamed[0]

    def gather(self, given: Any) -> list[Any]:
        """Return what each process gives, in the order of their ranks.

        Args:
            given: Tensors, numbers, strings, and nests of them.
        """
        if self.size == 1:
            return [given]
        buffer = io.BytesIO()
        torch.save(given, buffer)
        mine = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        sizes = [int(size) for size in self._all(torch.tensor([len(mine)]))]
        padded = mine.new_zeros(max(sizes))
        padded[: len(mine)] = mine
        texts = [part[:size].cpu() for part, size in zip(self._all(padded), sizes, strict=True)]
        streams = [io.BytesIO(text.numpy().tobytes()) for text in texts]
        return [torch.load(stream, weights_only=True) for stream in streams]

    def check_same(self, what: str, given: Any, instead: str) -> None:
        """Raise if the processes do not all give the same.

        Args:
            what: What it is, for the message.
            given: What is to be the same.
            instead: The line to write.

        Raises:
            ValueError: If they do not.
        """
        every = self.gather(given)
        for rank, other in enumerate(every):
            if other != every[0]:
                raise ValueError(
                    f"fit: expected {what} to be the same in all {self.size} processes; got "
                    f"{every[0]!r} in process 0, {other!r} in process {rank}. Write: {instead}."
                )

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Copy tensors of process 0 into those of the others.

        Args:
            tensors: The tensors.
        """
        if self.size > 1:
            with self._together(), torch.no_grad():
                for tensor in tensors:
                    sent = tensor.detach().to(self._device).contiguous()
                    distributed.broadcast(sent, 0)
                    tensor.copy_(sent)

    def largest(self, *numbers: int) -> list[int]:
        """Return the largest of each number in any process.

        Args:
            *numbers: Numbers of this process.
        """
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, device=self._device)
        with self._together():
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return [int(number) for number in tensor]

    def mean(self, value: float, share: float) -> float:
        """Return the weighted mean over all processes.

        Args:
            value: The value in this process.
            share: Its weight; those of all sum to one.
        """
        every = self.gather((value, share))
        return value if self.size == 1 else sum(other * weight for other, weight in every)

    def average(
        self,
        loss: Tensor,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        *,
        finite: bool,
    ) -> tuple[Tensor, list[Tensor | None], bool]:
        r"""Return loss, gradient and whether they are finite of the whole batch.

        .. math:: \nabla \mathcal{L} = \sum_r \frac{B_r}{B} \nabla \mathcal{L}_r

        Args:
            loss: Loss of the part of this process.
            params: Parameters, some or all of the trained ones.
            grads: Their gradients, None where there is none; sparse ones stay sparse.
            finite: Whether loss and gradient of this process are finite.
        """
        loss = loss.detach()
        if self.size == 1:
            self.blamed = [] if finite else [0]
            return loss, list(grads), finite
        known = {id(param): grad for param, grad in zip(params, grads, strict=True)}
        given = [known.get(id(param)) for param in self.trained]
        notes = loss.new_zeros(self.size + len(given))
        notes[self.rank] = not finite
        dense: list[Tensor] = []
        for index, (param, grad) in enumerate(zip(self.trained, given, strict=True)):
            notes[self.size + index] = grad is not None
            if grad is None:
                dense.append(torch.zeros_like(param))
            elif not grad.is_sparse:
                dense.append(grad * self.share)
        total, *summed, notes = self._sum([loss * self.share, *dense, notes])
        self.blamed = notes[: self.size].nonzero().flatten().tolist()
        queue, found = iter(summed), dict[int, Tensor | None]()
        for param, grad, had in zip(self.trained, given, notes[self.size :].tolist(), strict=True):
            if grad is not None and grad.is_sparse:
                found[id(param)] = self._rows(grad)
            else:
                joint = next(queue)
                found[id(param)] = joint if had else None
        return total, [found[id(param)] for param in params], not self.blamed

    def _sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of tensors over all processes, one message for each dtype."""
        found: list[Tensor] = list(tensors)
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == kind]
            flat = torch.cat([tensors[place].reshape(-1) for place in places])
            with self._together():
                distributed.all_reduce(flat)
            parts = flat.split([tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                found[place] = part.view(tensors[place].shape)
        return found

    def _rows(self, grad: Tensor) -> Tensor:
        """Return the sum of a sparse gradient over all processes: the rows of all."""
        mine = grad.coalesce()
        where, values = mine.indices(), mine.values() * self.share
        counts = [int(count) for count in self._all(torch.tensor([where.shape[1]]))]
        most = max(counts)
        all_where, all_values = (
            self._all(torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])]))
            for part in (where.T, values)
        )
        return torch.sparse_coo_tensor(
            torch.cat([part[:n] for part, n in zip(all_where, counts, strict=True)]).T,
            torch.cat([part[:n] for part, n in zip(all_values, counts, strict=True)]),
            grad.shape,
            check_invariants=False,
        ).coalesce()

    def _all(self, tensor: Tensor) -> list[Tensor]:
        mine = tensor.to(self._device).contiguous()
        others = [torch.empty_like(mine) for _ in range(self.size)]
        with self._together():
            distributed.all_gather(others, mine)
        return [other.to(tensor.device) for other in others]

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Say what it means if a process is missing."""
        try:
            yield
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"fit: expected all {self.size} processes to take part in each step; got "
                f"one that process {self.rank} waited for in vain, as it was killed or has raised "
                f"an error of its own ({first}). Write: the same command again; with "
                "checkpoints=... it goes on from the last one."
            ) from error
