"""As if on --num-gpus GPUs: the batch is cut into micro-batches whose gradients are summed before an update."""

from utils.distributed import is_distributed
from utils.errors import UserError


def micro_batches(batch_size: int, num_gpus: int | None, devices: int, training: bool) -> tuple[int, int]:
    """The size of a micro-batch and how many of them make an update, on `devices` devices at once.

    The reference trained on 8 GPUs and normalised batches per GPU; the same statistics on fewer devices need
    micro-batches of the same size: batch_size / k with k = num_gpus / devices. Evaluation only takes the size.
    None: as on the devices there are.
    Raises UserError when training with numbers that do not divide.
    """
    num_gpus = num_gpus or devices
    if training and num_gpus % devices:
        there = 'processes' if is_distributed() else 'devices that are visible'
        raise UserError(f'--num-gpus {num_gpus} is no multiple of the {devices} {there}')
    count = max(num_gpus // devices, 1)
    if training and batch_size % count:
        raise UserError(f'--batch-size {batch_size} cannot be cut into {count} equal micro-batches (--num-gpus)')
    return max(batch_size // count, 1), count


def smallest_part(images: int, devices: int) -> int:
    """Of how many images the smallest batch is when DataParallel cuts one for so many devices; of none, none."""
    part = -(-images // devices)
    return images % part or part if images else 0
