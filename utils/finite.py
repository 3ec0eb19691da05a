"""Noticing a loss or a weight that is no longer a finite number."""

import torch
from torch import Tensor, nn

from utils.distributed import everyones, together
from utils.errors import UserError


class FiniteLoss:
    """Remembers, on the device, the first step whose loss was not finite; asking waits for the device."""

    def __init__(self, device: torch.device):
        self.first_bad = torch.full((2,), -1, dtype=torch.int64, device=device)

    def note(self, loss: Tensor, epoch: int, step: int) -> None:
        """Look at the loss () of a step, without waiting."""
        here = torch.tensor([epoch, step]).to(self.first_bad.device, non_blocking=True)
        is_first = (self.first_bad[0] < 0) & ~torch.isfinite(loss.detach())
        self.first_bad = torch.where(is_first, here, self.first_bad)

    def check(self, advice: str) -> None:
        """UserError that names the first bad epoch and step of any process, if there is one, and gives the advice."""
        bad = [place for place in everyones(self.first_bad.tolist()) if place[0] >= 0]
        with together():
            if bad:
                epoch, step = min(bad)
                raise UserError(f'the loss is not finite at epoch {epoch}, step {step}; {advice}')


def check_weights(model: nn.Module) -> None:
    """UserError that names a tensor of the model's state which is not finite."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in state.values()])
    if not finite.all():
        name = list(state)[finite.tolist().index(False)]
        raise UserError(f'{name} of the net is not finite: not saved')
