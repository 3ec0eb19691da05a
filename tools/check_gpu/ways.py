"""Checks of ways to run a net: that they give the same, what is computed in which precision, and on which device."""

import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.deeplab import DeepLab
from models.dla_up import bilinear_up
from models.elastic import up
from tools.benchmark.nets import loss_of_first_class
from tools.check_gpu.nets import compute_of, filled, gradients_of, noise, training_step_of
from tools.check_gpu.result import Result, at_most, distance, skipped
from utils.device import Compute
from utils.step import Evaluator, TrainingStep

SIDE = 33  # maps are odd at most strides
ROUNDED = 4e-3  # bfloat16's rounding; the errors of many roundings hardly exceed it on average


def tests_alike(device: torch.device, net: str, **way) -> Result:
    """The copy that is tested, fused, channels-last and where asked compiled, against the plain net, contiguous."""
    compute, plain, images = compute_of(device, **way), compute_of(device, channels_last=False), noise(4, 3, SIDE, SIDE)
    tester, model = Evaluator(compute.place(filled(net, 9)), compute), plain.place(filled(net, 9))
    with torch.inference_mode():
        found = [tester.load()(compute.images(images[:count])) for count in (4, 3)]
        expected = [model(plain.images(images[:count])) for count in (4, 3)]
    return at_most(1e-4, {'outputs': distance(found, expected)})


def trains_alike(device: torch.device, net: str, **way) -> Result:
    """A training step run such a way against the plain one. Gradients have a bound of their own: with batch statistics
    of so few images another order of additions can change a thousandth of them."""
    found, expected = trained(device, filled(net, 9), **way), trained(device, filled(net, 9))
    errors = {name: distance(found[name], expected[name]) for name in expected}
    gradients, others = at_most(1e-2, {'gradients': errors.pop('gradients')}), at_most(1e-4, errors)
    return gradients if others.holds else others


def recomputes_alike(device: torch.device, net: str) -> Result:
    """One with recomputed activations against one with kept ones, in float64."""
    recomputed, kept = (
        trained(device, filled(net, 9, dtype=torch.float64, checkpoint_activations=on)) for on in (True, False)
    )
    return at_most(1e-8, {name: distance(recomputed[name], kept[name]) for name in kept})


def trained(device: torch.device, model: nn.Module, **way) -> dict[str, list[Tensor]]:
    """Loss, gradients and running statistics after three micro-batches of an update, whose gradients add up."""
    training_step = training_step_of(model.train(), compute_of(device, **way), accum_steps=3)
    images = training_step.compute.images(noise(4, 3, SIDE, SIDE, dtype=next(model.parameters()).dtype))
    for step in range(3):
        _, loss = training_step(step, images, None)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    statistics = [value for name, value in model.named_buffers() if 'running' in name]
    return {'loss': [loss], 'gradients': gradients, 'statistics': statistics}


def fused_sgd_is_plain(device: torch.device) -> Result:
    """Five updates in float64, of which the first is left out, as where fp16 overflows."""

    def updated(fused: bool) -> list[Tensor]:
        compute = compute_of(device)
        model = compute.place(filled('resnext', 9, dtype=torch.float64)).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, fused=fused)
        training_step = TrainingStep(model, loss_of_first_class, compute, optimizer)
        training_step.scaler = torch.amp.GradScaler(device.type, 1.0)
        for factor in float('inf'), 1, 1, 1, 1:
            _, loss = training_step.forward(compute.images(noise(4, 3, SIDE, SIDE, dtype=torch.float64)), None)
            training_step.backward(factor * loss)
            training_step.optimizer_step(0.01)
        return list(model.state_dict().values())

    return at_most(1e-10, {'state': distance(updated(True), updated(False))})


def float32_is_ieee(device: torch.device) -> Result:
    """Products and convolutions under --amp off."""
    return at_most(5e-5, product_errors(device, 'off'))  # some algorithms of convolutions come to 1e-5


def tf32_is_tf32(device: torch.device) -> Result:
    """The same under --amp tf32: else it would be slower than it has to be."""
    if device.type != 'cuda' or torch.cuda.get_device_capability(device)[0] < 8:
        return skipped('TF32 is of NVIDIA GPUs from Ampere on')
    errors = product_errors(device, 'tf32')
    compute_of(device)
    message = ', '.join(f'{name} {error:.1e}' for name, error in errors.items())
    holds = errors['product'] > 1e-4 and max(errors.values()) < 1e-2
    return Result(holds, message, 'at most 1e-02, of the product at least 1e-04')


def product_errors(device: torch.device, amp: str) -> dict[str, float]:
    """Of float32 against float64; of TF32 about 3e-4."""
    compute_of(device, amp)
    matrix, images = noise(1024, 1024).to(device), noise(4, 256, 32, 32).to(device)
    kernel = matrix.view(-1)[: 256 * 256 * 9].view(256, 256, 3, 3)
    return {
        'product': distance([matrix @ matrix], [matrix.double() @ matrix.double()]),
        'convolution': distance([F.conv2d(images, kernel)], [F.conv2d(images.double(), kernel.double())]),
    }


def segmenters_resize_in_float32(device: torch.device, side: int = 513) -> Result:
    """DeepLab's scores under bfloat16: each gradient is a sum of up to 961 terms, here of one sign."""
    training_step, scores = training_step_of(DeepLab((1, 1, 1)), compute_of(device, 'bf16')), []
    training_step.model.aspp.conv3.register_forward_hook(lambda module, inputs, output: scores.append(output))
    outputs = training_step.runner(training_step.compute.images(noise(2, 3, side, side)))
    (gradient,) = torch.autograd.grad(outputs.sum(), scores)

    def resize(x: Tensor) -> Tensor:
        return F.interpolate(x, (side, side), mode='bilinear', align_corners=True)

    exact = torch.zeros_like(gradient, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(resize(exact).sum(), exact)
    in_bf16 = gradient_error(resize, gradient.shape, device)
    return at_most(ROUNDED, {f'gradient; resized in bf16 {in_bf16:.0e}': distance([gradient], [expected])})


def up_may_add_in_bf16(device: torch.device) -> Result:
    """Elastic's `up`: each gradient is a sum of 16 terms."""
    return at_most(3 * ROUNDED, {'gradient': gradient_error(lambda x: up(x, (55, 55)), (2, 64, 28, 28), device)})


def transposed_convs_add_in_float32(device: torch.device, planes: int = 64) -> Result:
    """Those of DLA-Up: outputs sum 4 terms, gradients up to 1,024."""
    errors = {}
    for factor in 2, 4, 16:
        conv = bilinear_up(planes, factor).to(device, torch.bfloat16).requires_grad_(False)
        x = noise(2, planes, 16, 16).abs().to(device, torch.bfloat16)
        found = conv(x)
        errors[f'output, x{factor}'] = distance([found], [conv.double()(x.double())])
        errors[f'gradient, x{factor}'] = gradient_error(lambda x, conv=conv: conv.to(x.dtype)(x), x.shape, device)
    return at_most(ROUNDED, errors)


def gradient_error(run: Callable[[Tensor], Tensor], shape: tuple[int, ...], device: torch.device) -> float:
    """That of the gradient in bfloat16, of a sum with positive factors, so that all terms are of one sign."""
    found, factors = [], None
    for dtype in torch.bfloat16, torch.float64:
        x = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
        outputs = run(x)
        factors = noise(*outputs.shape).abs().bfloat16().to(device) if factors is None else factors
        found += torch.autograd.grad(outputs, x, factors.to(dtype))
    return distance(*([gradient] for gradient in found))


def nets_cast_in_threads(device: torch.device) -> Result:
    """As DataParallel calls them: from threads that know nothing of autocast."""
    training_step, found = training_step_of(filled('resnext', 9).train(), compute_of(device, 'bf16')), []
    thread = threading.Thread(target=lambda: found.extend(dtypes(training_step)))
    thread.start()
    thread.join()
    return Result(found == [torch.bfloat16], ', '.join(map(str, found)), 'torch.bfloat16')


def dtypes(training_step: TrainingStep) -> list[torch.dtype]:
    """Those of a layer's outputs, one for each device."""
    found = []
    training_step.model.layer1.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    training_step.runner(training_step.compute.images(noise(8, 3, SIDE, SIDE)))
    return found


def data_parallel(device: torch.device) -> Result:
    """On two GPUs and more: in bfloat16, and with the gradients of one in float64."""
    if device.type != 'cuda' or torch.cuda.device_count() < 2:
        return skipped('DataParallel needs two GPUs; two processes are checked instead')
    images, found = noise(8, 3, SIDE, SIDE, dtype=torch.float64), []
    for all_gpus in True, False:
        model = filled('resnext', 9, dtype=torch.float64)  # in evaluation: norms of parts of a batch would differ
        found.append(gradients_of(training_step_of(model, Compute('cuda', all_gpus=all_gpus)), images))
    error, cast = distance(*found), set(dtypes(training_step_of(filled('resnext', 9), Compute('cuda', 'bf16'))))
    message = f'{error:.1e} (gradients), {", ".join(map(str, cast))}'
    return Result(error <= 1e-10 and cast == {torch.bfloat16}, message, 'at most 1e-10, torch.bfloat16')


def current_device(device: torch.device) -> Result:
    """A numbered GPU, the last one, becomes the current one; its name is its own."""
    if device.type != 'cuda':
        return skipped('a CPU has no number')
    last = torch.device('cuda', torch.cuda.device_count() - 1)
    compute = Compute(str(last), 'off')
    found = torch.cuda.current_device(), compute.name
    torch.cuda.set_device(device)
    expected = last.index, torch.cuda.get_device_name(last)
    return Result(found == expected, f'{found[1]}, number {found[0]}', f'number {expected[0]}')


def cudnn_chooses(device: torch.device) -> Result:
    """cudnn.benchmark is on, as in the reference."""
    Compute(str(device), all_gpus=False)
    if device.type != 'cuda':
        return skipped('cuDNN is of GPUs')
    return Result(torch.backends.cudnn.benchmark, f'cudnn.benchmark is {torch.backends.cudnn.benchmark}', 'True')
