"""A net as it is trained, step by step, and as it is tested."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fused import fused
from utils.device import Compute, Runner
from utils.distributed import world_size

Loss = Callable[[Tensor, Any], Tensor]  # (outputs, targets) -> mean loss ()


class TrainingStep:
    """Forward, backward and update of a net whose gradients are averaged over `accum_steps` micro-batches."""

    def __init__(
        self, model: nn.Module, loss: Loss, compute: Compute, optimizer: torch.optim.Optimizer, accum_steps: int = 1
    ):
        self.model, self.loss, self.compute, self.optimizer = model, loss, compute, optimizer
        self.accum_steps = accum_steps
        self.runner = compute.runner(model, train=True)  # the net as it is called: compiled, over several devices
        self.scaler = compute.scaler()
        for group in optimizer.param_groups:
            for parameter in group['params']:
                # Momentum begins at zero, not at whatever is in memory: where the very first gradients are not finite,
                # as in fp16 they often are not, PyTorch's fused SGD makes the buffers and does not fill them.
                if group.get('momentum') and parameter.requires_grad:
                    optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)

        if compute.captures:  # what a CUDA graph returns is overwritten by the next: it is added to memory of our own
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)

    def __call__(self, step: int, images: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Add the gradients of the epoch's micro-batch numbered `step`; its outputs, detached, and mean loss."""
        with self.no_sync(step):
            outputs, loss = self.forward(images, targets)
            self.backward(loss)
        return outputs.detach(), loss

    def no_sync(self, step: int) -> AbstractContextManager:
        """Context in which gradients stay in their process; of an update's last micro-batch they are averaged."""
        return nullcontext() if world_size() == 1 or self.completes_update(step) else self.runner.no_sync()

    def forward(self, images: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Outputs, in float32 at least, and mean loss () of a micro-batch N x 3 x H x W."""
        if self.compute.compile:  # for each number of its own: one for any number would be used for all from then on
            torch._dynamo.mark_static(images, 0)
        outputs = self.runner(images)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return outputs, self.loss(outputs, targets)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share to the gradients of the update."""
        self.scaler.scale(loss / self.accum_steps).backward()

    def completes_update(self, step: int) -> bool:
        """Whether the micro-batch numbered `step` (from 0) is the last of an update."""
        return (step + 1) % self.accum_steps == 0

    def optimizer_step(self, learning_rate: float) -> None:
        """Let the optimizer use the gradients, and clear them. A group's `lr_scale` is a factor of its own."""
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate * group.get('lr_scale', 1)
        self.scaler.step(self.optimizer)
        self.scaler.update(self.compute.loss_scale)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients of an update that was done, or never will be."""
        self.optimizer.zero_grad(set_to_none=not self.compute.captures)


class Evaluator:
    """A net as it is tested: fused and in the precision of the arithmetic, compiled once for all tests."""

    def __init__(self, model: nn.Module, compute: Compute, wrap: Callable[[Runner], Runner] | None = None):
        self.model, self.compute, self.wrap = model, compute, wrap
        self.net: nn.Module | None = None
        self.shape: torch.Size | None = None  # of a compiled net's batches

    def load(self) -> Runner:
        """Take the weights that the net now has; a function of images N x 3 x H x W that gives outputs in float32."""
        fresh = self.compute.place_for_test(fused(self.model))
        if self.net is None:
            self.net, self.runner = fresh, self.compute.runner(fresh, train=False)
        self.net.load_state_dict(fresh.state_dict())  # what was compiled stays
        return self.wrap(self._outputs) if self.wrap else self._outputs

    def _outputs(self, images: Tensor) -> Tensor:
        images = images.to(self.compute.dtype)
        count = len(images)
        if self.compute.compile:
            images = self._filled(images)
        return self.runner(images)[:count].float()

    def _filled(self, images: Tensor) -> Tensor:
        """With zeros up to the largest batch so far: a net for any number of images is a sixth slower on a GPU.

        But images of another size than the first may be of many sizes, and each of few images.
        """
        self.shape = self.shape or images.shape
        if images.shape[1:] != self.shape[1:]:
            torch._dynamo.maybe_mark_dynamic(images, 0)
            return images
        self.shape = max(self.shape, images.shape)
        if images.shape != self.shape:  # else it would be a copy
            images = F.pad(images, (*6 * [0], 0, self.shape[0] - len(images)))
        torch._dynamo.mark_static(images, 0)
        return images
