"""Write the averaged model of a run, w_a, as a plain state dict that PyTorch, torchvision and transformers load.

    python -m horovod_dpsgd.export RUN_DIR model.safetensors      # or model.pt
    python -m horovod_dpsgd.export RUN_DIR model.safetensors --step 2000

Weights and floating buffers (BatchNorm's running statistics) are the means over the learners of the newest intact
checkpoint, or of that of a step. Integer buffers are learner 0's.

    model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from torch import Tensor

from horovod_dpsgd.command_line import OneLineParser, give_up
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.files import write_whole
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.checkpoint import Manifest


def main() -> None:
    p = OneLineParser("python -m horovod_dpsgd.export", description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN_DIR")
    p.add_argument("output", type=Path, metavar="FILE", help="its suffix says the format: .safetensors or .pt")
    p.add_argument("--step", type=int, help="of which step (default: the newest)")
    given = p.parse_args()
    try:
        manifest = _manifest(given.run / "checkpoints", given.step)
        weights = checkpoint.mean_model(manifest)  # tied tensors stand under each of their names, apart
        save(weights, given.output)
    except UserError as error:
        give_up(error, p.prog)
    count = sum(tensor.numel() for tensor in weights.values())
    print(f"{given.output}: the mean of {manifest.learners} learners after step {manifest.step}, {count} numbers")


def save(weights: dict[str, Tensor], path: Path) -> None:
    """Raises UserError if the file cannot be written, or its suffix is no format."""
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(f"{path}: the format is said by the suffix, .safetensors or .pt")
    try:
        content = _safetensors(weights) if path.suffix == ".safetensors" else _pickled(weights)
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _safetensors(weights: dict[str, Tensor]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError("safetensors is not installed: pip install safetensors, or give a .pt file") from error
    return save({name: tensor.clone().contiguous() for name, tensor in weights.items()}, {"format": "pt"})


def _pickled(weights: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def _manifest(folder: Path, step: int | None) -> Manifest:
    if step is None:
        found = checkpoint.newest(folder, lambda line: print(line, file=sys.stderr))
        if found is None:
            raise UserError(f"{folder} holds no checkpoint")
        return found
    try:
        manifest = Manifest.read(checkpoint.folder_of(folder, step))
        problem = manifest.damage()
    except ValueError as error:
        raise UserError(str(error)) from error
    if problem:
        raise UserError(f"{manifest.folder}: {problem}")
    return manifest


if __name__ == "__main__":
    main()
