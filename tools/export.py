"""Nets as files that run without this code: a program of torch.export, and ONNX where that is installed."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from utils.errors import UserError
from utils.files import written_whole


def has_onnx() -> bool:
    """Whether there is what torch's exporter to ONNX needs."""
    return all(find_spec(name) for name in ('onnx', 'onnxscript'))


def export(model: nn.Module, path: Path, size: int) -> list[Path]:
    """Write a net on the CPU as `path`, NAME.pt2, and where ONNX is installed as NAME.onnx beside it: all or none.

    Both take normalized images N x 3 x size x size, of any N, and give what the net gives in evaluation mode.
    """
    if path.suffix != '.pt2':
        raise UserError(f'--export {path}: the name of a torch.export program ends in .pt2')
    images = torch.zeros(2, 3, size, size)  # two: a batch of one would be taken for a constant
    program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: Dim('batch')},))
    paths = [path, path.with_suffix('.onnx')] if has_onnx() else [path]
    with written_whole(*paths) as (file, *onnx):
        saved = BytesIO()  # not into the file: where the disk is full PyTorch's writer would abort the interpreter
        torch.export.save(program, saved)
        file.write_bytes(saved.getbuffer())
        for file in onnx:
            save_onnx(program, file)
    return paths


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Write the program as one ONNX file, with its weights."""
    converted = torch.onnx.export(program, dynamo=True, verbose=False, input_names=['images'], output_names=['scores'])
    converted.save(path, external_data=False)
