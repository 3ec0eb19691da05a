"""Where and in which precision a net runs."""

import ctypes
import platform
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import is_distributed, world_size
from utils.errors import UserError

Runner = Callable[[Tensor], Tensor]  # a net as it is called: images N x 3 x H x W -> outputs

# DistributedDataParallel's argument, whose old name warns from PyTorch 2.15 on.
_SYNC_BUFFERS = 'forward_sync_buffers', 'broadcast_buffers'
OWN_BUFFERS = {next(name for name in _SYNC_BUFFERS if name in signature(DistributedDataParallel).parameters): False}

DTYPES = {'off': torch.float32, 'tf32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Autocast(nn.Module):
    """A net that casts by itself: DataParallel calls it in threads of its own, which do not know the caller's dtype."""

    def __init__(self, net: nn.Module, device_type: str, dtype: torch.dtype):
        super().__init__()
        self.net, self.device_type, self.dtype = net, device_type, dtype

    def forward(self, images: Tensor) -> Tensor:
        """As the net's."""
        with torch.autocast(self.device_type, self.dtype):
            return self.net(images)


class HostCopy:
    """A tensor on its way to the host: nothing waits for a GPU until the copy is asked for."""

    def __init__(self, tensor: Tensor):
        self.copy, self.arrived = tensor.to('cpu', non_blocking=tensor.is_cuda), None
        if tensor.is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def get(self) -> Tensor:
        """The copy, once it is whole."""
        if self.arrived:
            self.arrived.synchronize()
        return self.copy


class Compute:
    """A device, the precision of its matrix products and convolutions, and the layout of its feature maps."""

    def __init__(
        self,
        device: str = 'auto',
        amp: str = 'off',
        channels_last: bool = True,
        compile: bool = False,
        loss_scale: float | None = None,  # of fp16; None: as large as it can be
        all_gpus: bool = True,  # unless `device` has a number; a process of a job uses one
    ):
        self.device = pick_device(device)
        if self.device == torch.device('cuda') and (is_distributed() or not all_gpus):
            self.device = torch.device('cuda', torch.cuda.current_device())
        if amp == 'fp16' and self.device.type == 'cpu':
            raise UserError('--amp fp16 needs a GPU: on CPU use --amp bf16 or --amp off')
        if amp == 'tf32' and self.device.type != 'cuda':
            raise UserError('--amp tf32 needs a GPU of NVIDIA: use --amp bf16 or --amp off')
        self.dtype = DTYPES[amp]
        if self.device.type == 'cuda':
            # DataParallel's threads are new at each call, and know nothing of what cuDNN has found in others.
            set_up_gpu(self.device, tf32=amp == 'tf32', search=self.devices == 1)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.compile, self.loss_scale = compile, loss_scale

    @property
    def devices(self) -> int:
        """How many devices this process uses: all visible GPUs, through DataParallel, as the reference did, or the
        one that is numbered, as that of each process of a job is."""
        return torch.cuda.device_count() if self.device == torch.device('cuda') else 1

    def place(self, model: nn.Module) -> nn.Module:
        """Move a net to the device, its weights in the layout of feature maps."""
        return model.to(self.device, memory_format=self.layout)

    def runner(self, model: nn.Module, train: bool) -> Runner:
        """How the placed model is called: over all GPUs or processes, compiled where asked. Its state stays in `model`.

        Each process keeps its own running statistics, as the reference's did.
        """
        runner: nn.Module = model
        if train and self.dtype in (torch.bfloat16, torch.float16):  # for tests place_for_test casts the weights
            runner = Autocast(model, self.device.type, self.dtype)
        if train and is_distributed():
            runner = DistributedDataParallel(runner, gradient_as_bucket_view=True, **OWN_BUFFERS)
        elif self.devices > 1:
            runner = nn.DataParallel(runner)
        if not self.compile:
            return runner
        return torch.compile(runner, mode='reduce-overhead' if train and self.captures else None)

    @property
    def captures(self) -> bool:
        """Whether compiled training steps are CUDA graphs, since launching their kernels takes longer than they do."""
        return self.compile and self.device.type == 'cuda' and self.devices == 1 and not is_distributed()

    def place_for_test(self, model: nn.Module) -> nn.Module:
        """As `place`, with the weights in this precision: without autocast nothing is cast from batch to batch."""
        return model.to(self.device, self.dtype, memory_format=self.layout)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small gradients above fp16's smallest number; passes everything through in other precisions."""
        return torch.amp.GradScaler(self.device.type, self.loss_scale or 2.0**16, enabled=self.dtype == torch.float16)

    def images(self, images: Tensor) -> Tensor:
        """Move a batch N x 3 x H x W to the device, in its layout."""
        return self.copied(images).to(memory_format=self.layout)

    def copied(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; without waiting where that is safe, on a GPU and from pinned memory."""
        return tensor.to(self.device, non_blocking=self.device.type == 'cuda' and tensor.is_pinned())

    def targets(self, targets: Any) -> Any:
        """Move a tensor, or a named tuple of tensors, to the device."""
        if isinstance(targets, Tensor):
            return self.copied(targets)
        return type(targets)(*map(self.targets, targets))

    @property
    def name(self) -> str:
        """What the device is called."""
        return torch.cuda.get_device_name(self.device) if self.device.type == 'cuda' else self.device.type

    def __str__(self) -> str:
        number = self.devices * world_size()
        count = f'{number} x ' if number > 1 else ''
        layout = 'channels-last' if self.layout is torch.channels_last else 'contiguous'
        return f'{count}{self.name}, {str(self.dtype).removeprefix("torch.")}, {layout}' + ', compiled' * self.compile


def set_up_gpu(device: torch.device, tf32: bool, search: bool) -> None:
    """Make a numbered GPU the current one, let cuDNN `search` for its fastest algorithms, as the reference did, and
    decide for convolutions and products alike whether float32 may be rounded to TF32, which no card of 2019 did."""
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = search
    # Not by fp32_precision, the newer name: torch.export looks at this one, and after the other would find an error.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def pick_device(name: str) -> torch.device:
    """`auto` is the first of cuda, mps, cpu that is there, `cuda:1` the second GPU; UserError for one that is not."""
    gpus = [f'cuda:{index}' for index in range(torch.cuda.device_count())]
    present = [*['cuda'] * bool(gpus), *['mps'] * torch.backends.mps.is_available(), 'cpu', *gpus]
    if name == 'auto':
        name = present[0]
    if name not in present:
        raise UserError(f'--device {name}: no such device here; there are {", ".join(present)}')
    return torch.device(name)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory(device: torch.device) -> None:
    """For nets on a CPU: let glibc give freed memory to the next tensor instead of back to the system.

    By default it does that from 32 MiB on. Then every large feature map is of new pages, each of which the kernel has
    to clear first, which takes a fifth of the time (docs/speed.md).
    """
    if device.type == 'cpu' and platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
