"""Noticing a loss or a weight that is no longer a finite number."""

import torch
from torch import Tensor, nn

from utils.distributed import everyones, together
from utils.errors import UserError

EPOCH = 2**32  # more steps than any epoch has


class FiniteLoss:
    """Remembers, on the device, the first step whose loss was not finite; asking waits for the device."""

    def __init__(self, device: torch.device):
        self.first_bad = torch.tensor(-1, device=device)  # epoch * EPOCH + step

    def note(self, loss: Tensor, epoch: int, step: int) -> None:
        """Look at the loss () of a step, without waiting."""
        is_first = (self.first_bad < 0) & ~torch.isfinite(loss.detach())
        self.first_bad = torch.where(is_first, epoch * EPOCH + step, self.first_bad)

    def check(self, advice: str) -> None:
        """UserError that names the first bad epoch and step of any process, if there is one, and gives the advice."""
        bad = [place for place in everyones(self.first_bad.item()) if place >= 0]
        with together():
            if bad:
                epoch, step = divmod(min(bad), EPOCH)
                raise UserError(f'the loss is not finite at epoch {epoch}, step {step}; {advice}')


def check_weights(model: nn.Module) -> None:
    """UserError that names a tensor of the model's state which is not finite."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in state.values()])
    if not finite.all():
        name = list(state)[finite.tolist().index(False)]
        raise UserError(f'{name} of the net is not finite: not saved')
