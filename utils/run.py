"""A training run: its folder, how far it is, its checkpoints and its log."""

import math
import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from models.norm import bn_buffers
from utils import checkpoint
from utils.checkpoint import Checkpoint, CheckpointMeta, check_fit, head_mismatch, load_optimizer, resume, transfer
from utils.distributed import (
    all_gather_object,
    check_same,
    is_distributed,
    is_main_process,
    rank,
    together,
    world_size,
)
from utils.errors import UserError, reading
from utils.files import remove_leftovers
from utils.logger import Log, Reporter
from utils.metrics import Metrics, over_processes
from utils.signals import Stopped
from utils.step import TrainingStep


class FiniteLoss:
    """Remembers, on the device, the first step whose loss was not finite; asking waits for the device."""

    def __init__(self, device: torch.device):
        self.first_bad = torch.tensor(-1, device=device)

    def note(self, loss: Tensor, step: int) -> None:
        """Look at the loss () of a step, without waiting."""
        is_first = (self.first_bad < 0) & ~torch.isfinite(loss.detach())
        self.first_bad = torch.where(is_first, step, self.first_bad)


def check_weights(model: nn.Module) -> None:
    """UserError that names a tensor of the model's state which is not finite."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in state.values()])
    if not finite.all():
        name = list(state)[finite.tolist().index(False)]
        raise UserError(f'{name} of the net is not finite: not saved')


def first_weights(model: nn.Module) -> list[float]:
    """The first value of every parameter, by which processes tell that they have the same net; of one process none."""
    return [parameter.flatten()[0].item() for parameter in model.parameters()] if is_distributed() else []


@dataclass(frozen=True)
class CheckpointNames:
    """What a run calls its checkpoints: the last, that of the best epoch, and numbered ones that are kept for good.

    An epoch is the best if its `metric`, of validation and in %, is lower than all before. A numbered file bears the
    epochs done behind the `stem`; there is one every 10 epochs, and one at the run's end.
    """

    last: str
    best: str | None = None
    metric: str = 'err1'
    stem: str | None = None

    def numbered(self, epoch: int) -> str:
        """The name of the numbered file of so many epochs done."""
        return f'{self.stem}{epoch}.pth'

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether a numbered file is kept of `epoch` epochs done, in a run of `epochs`."""
        return self.stem is not None and (epoch % 10 == 0 or epoch == epochs)

    def include(self, name: str, epochs: int) -> bool:
        """Whether a run of so many epochs writes a file of this name."""
        digits = name.removeprefix(self.stem or '').removesuffix('.pth')
        number = int(digits) if digits.isdecimal() else 0
        is_numbered = name == self.numbered(number) and 0 < number <= epochs and self.due(number, epochs)
        return is_numbered or name in (self.last, self.best)


class Run:
    """How far training is, `epoch` epochs done and `step` micro-batches of the next, and how that is kept on disk.

    The caller has locked --output before it looks for a checkpoint there. `plan` is what makes an epoch (samples,
    micro-batch, accumulate), and so of how many `steps`: a position inside one means nothing under another plan.
    """

    def __init__(
        self,
        args: Namespace,
        meta: CheckpointMeta,
        names: CheckpointNames,
        training_step: TrainingStep,
        plan: dict[str, int],
        steps: int,
        reporter: Reporter,
    ):
        self.args, self.meta, self.names, self.reporter = args, meta, names, reporter
        self.plan, self.steps = plan, steps
        self.model = training_step.model  # bare: neither compiled nor wrapped
        self.optimizer, self.scaler = training_step.optimizer, training_step.scaler
        self.folder = args.output
        self.log = Log(self.folder)
        self.finite = FiniteLoss(next(self.model.parameters()).device)
        self.epoch = self.step = self.seed = 0
        self.word: str | None = uuid4().hex  # in all its checkpoints, no other's; None: older than words
        self.best: float | None = None  # before the first epoch is validated
        self.smooth_loss: float | None = None  # where the epoch under way began: an average that epochs hand on
        self.metrics: Metrics | None = None  # of the epoch under way
        self.metrics_state: dict[str, Any] | None = None  # of a resumed epoch, until they exist
        self.newest: Path | None = None  # checkpoint to go back to

    def begin(self, found: Checkpoint | None, device: str) -> None:
        """Start afresh, resume `found` or transfer it, and log the arguments; UserError if it fits neither way."""
        difference = found and head_mismatch(found, self.model, self.meta)
        self._check_folder(found, difference)
        if found and not difference:
            with reading(f'{found.path} has another form'):
                self._resume(found)
        else:
            self._start(found)
        if is_main_process():
            remove_leftovers(self.folder, self._is_own)
            facts = {'device': device, 'from_epoch': self.epoch, 'from_step': self.step}
            self.log.start(vars(self.args), self.names.last, **facts)

    def check_same_start(self) -> None:
        """UserError unless all processes begin at one place with the same weights, as where all see the same files."""
        samples = f'process 0 has {self.plan["samples"]} training samples, and another one has others'
        check_same(self.plan, f'{samples}: all must see the same pictures')
        start = self.epoch, self.step, self.seed, first_weights(self.model)
        check_same(start, f'processes begin at different places: all must see the same --output {self.folder}')

    def resumed_metrics(self, metrics: Metrics) -> Metrics:
        """Let an epoch's new metrics go on from where the resumed ones, or the last epoch's average, stopped."""
        metrics.smooth_loss = self.smooth_loss
        if self.metrics_state is not None:
            with reading(f'{self.newest}: its metrics has another form'):
                metrics.load_state_dict(self.metrics_state)
        self.metrics, self.metrics_state = metrics, None
        return metrics

    def check_finite(self) -> None:
        """UserError that names the epoch's first step whose loss, in any process, was not finite; waits for the device.

        It is called before an epoch's end, so that such a step is always of the epoch under way.
        """
        bad = [step for step in all_gather_object(self.finite.first_bad.item()) if step >= 0]
        with together():
            if bad:
                advice = f'last checkpoint: {self.newest or "none yet"}; a smaller --lr or another --amp may help'
                raise UserError(f'the loss is not finite at epoch {self.epoch}, step {min(bad)}; {advice}')

    def save_if_due(self) -> None:
        """Save inside an epoch, after an update, as often as --save-steps says."""
        if self.args.save_steps and self.step % (self.args.save_steps * self.plan['accumulate']) == 0:
            self.save(self.names.last)

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Save, and say how to go on, when Stopped ends what is done within."""
        try:
            yield
        except Stopped as stopped:
            self.save(self.names.last)
            name = signal.Signals(stopped.code - 128).name
            where = f'epoch {self.epoch}, step {self.step}'
            self.reporter.say(f'=> {name}: saved at {where}; --resume {self.newest} goes on')
            raise

    def finish_epoch(self, learning_rate: float, **results: dict[str, Any]) -> None:
        """Log the epoch's results in `train` and `val`, and save it, also as the best or numbered if it is."""
        names = [self.names.last]
        if self.names.best:
            reached = results['val'][self.names.metric]
            if math.isfinite(results['val']['loss']) and (self.best is None or reached < self.best):
                self.best = reached
                names.append(self.names.best)
        if self.names.due(self.epoch + 1, self.args.epochs):
            names.append(self.names.numbered(self.epoch + 1))
        if is_main_process():
            self.log.note(epoch=self.epoch, lr=learning_rate, **results, **self._best())
        self.smooth_loss = self.metrics.smooth_loss
        self.epoch, self.step, self.metrics = self.epoch + 1, 0, None
        self.save(*names)
        if is_main_process():
            self.log.draw()

    def save(self, *names: str) -> None:
        """Write the state to files of these names; UserError, and nothing written, if it is not finite.

        The first, which a run goes on from, is put in place last: one killed before that does the epoch again.
        """
        self.check_finite()
        with together():  # running statistics are each process's own
            check_weights(self.model)
        inside = self.step > 0 and self.metrics is not None  # an epoch
        counts = self.metrics.state_dict() if inside else None
        total = over_processes(self.metrics).state_dict() if inside else None  # for a job of another size
        position = {'step': self.step, 'steps': self.steps, 'plan': self.plan, 'metrics': total}
        content = {
            'epoch': self.epoch,
            **asdict(self.meta),
            'state_dict': checkpoint.state_dict(self.model),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'run': self.word,
            'seed': self.seed,
            'position': position if inside else None,
            'smooth_loss': self.smooth_loss,
        }
        if is_distributed():  # what each process has of its own
            statistics = {name: value.cpu() for name, value in bn_buffers(self.model).items()}
            content['processes'] = all_gather_object({'statistics': statistics, 'metrics': counts})
        content |= self._best()
        with together():
            if is_main_process():
                checkpoint.write(content, *(self.folder / name for name in names[::-1]))
        self.newest = self.folder / names[0]

    def _best(self) -> dict[str, float]:
        return {} if self.best is None else {f'best_{self.names.metric}': self.best}

    def _is_own(self, name: str) -> bool:
        return name == self.log.picture.name or self.names.include(name, self.args.epochs)

    def _check_folder(self, found: Checkpoint | None, difference: str | None) -> None:
        """UserError if the folder holds checkpoints that would be written over and is not what the run goes on from."""
        there = sorted(path for path in self.folder.glob('*') if path.exists())
        own = [path for path in there if self.names.include(path.name, self.args.epochs)]
        if found and difference and found.path in own:
            raise UserError(f'{found.path} cannot be resumed: {difference}; give another --output')
        if found and not difference and found.path.resolve().parent == self.folder.resolve():
            self.word = found.run if own else self.word
            own = [path for path in own if checkpoint.is_of_another_run(path, found)]
        if own:
            last = self.folder / self.names.last
            path, go_on = (last, 'go on with it (--auto-resume), or ') if last in own else (own[0], '')
            cure = f'{go_on}give this one a folder of its own, --output runs/{self.meta.arch}'
            raise UserError(f'{path} is of another run: {cure}')

    def _start(self, found: Checkpoint | None) -> None:
        self.seed, self.epoch = self.args.seed or 0, self.args.start_epoch
        if found:
            fresh = transfer(self.model, found)
            self.reporter.say(f'=> transferred {found.path}; left out, as initialised: {", ".join(fresh)}')

    def _resume(self, found: Checkpoint) -> None:
        seed = self.args.seed
        if seed is not None and found.seed not in (None, seed):
            raise UserError(f'{found.path} was trained with --seed {found.seed}, not {seed}: leave --seed out')
        if found.position:
            self._take_position(found.position, found.path)
        resume(self.model, found)
        if found.processes and len(found.processes) == world_size():
            own, buffers = found.processes[rank()], bn_buffers(self.model)
            check_fit(buffers, own['statistics'], found.path)
            for name, value in buffers.items():
                value.copy_(own['statistics'][name])
            self.metrics_state = own['metrics']
        elif not is_main_process():  # of a job of another size: the first process goes on with what was saved
            self.metrics_state = None
        load_optimizer(self.model, self.optimizer, found)
        if found.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(found.scaler)
        self.seed = (seed or 0) if found.seed is None else found.seed
        self.epoch = self.args.start_epoch if found.epoch is None else found.epoch
        self.smooth_loss, self.newest = found.smooth_loss, found.path
        if self.names.best:
            self.best = found.best.get(f'best_{self.names.metric}')
        self.reporter.say(f'=> resumed {found.path}: {self.epoch} epochs and {self.step} steps done')

    def _take_position(self, position: dict[str, Any], path: Path) -> None:
        if position['step'] == position.get('steps'):  # all that is left is the epoch's test, in whatever batches
            position = {**position, 'step': self.steps, 'plan': self.plan}
        if position['plan'] != self.plan:
            old, new = (', '.join(f'{k} {v}' for k, v in p.items()) for p in (position['plan'], self.plan))
            raise UserError(f'{path} was saved inside an epoch of {old}; it cannot go on with {new}')
        self.step, self.metrics_state = int(position['step']), position['metrics']
        samples, micro_batch = self.plan['samples'], self.plan['micro-batch']
        if not 0 <= self.step * micro_batch < samples + micro_batch:
            raise UserError(f'{path}: its position is step {self.step} of an epoch of {samples} samples')
