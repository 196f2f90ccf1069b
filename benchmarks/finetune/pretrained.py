"""Pretrain once a task, and keep the weights where temporary files are: any run can make them again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.finetune.task import Task
from benchmarks.finetune.training import train

SEED = 0


def pretrained_weights(task: Task, folder: Path | None = None, device: str = "cpu") -> dict[str, Tensor]:
    """The weights that finetuning takes from pretraining, by parameter name.

    Args:
        task: what to pretrain.
        folder: where they are kept; None: revsurgeon-finetune among the temporary files.
        device: to pretrain on, if they are not there.
    """
    folder = folder or Path(tempfile.gettempdir()) / "revsurgeon-finetune"
    wanted = {n: v for n, v in task.settings.to_dict().items() if n.startswith("pretraining")}
    settings = json.dumps([wanted, task.text, torch.__version__], sort_keys=True)
    path = folder / f"{task.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file(_pretrain(task, device), partial)
        partial.replace(path)  # so that no other process reads half of it
    return load_file(path)


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put pretrained weights into a network whose other weights stay as they are."""
    _, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected:
        raise ValueError(f"the network has no {unexpected[0]}")


def _pretrain(task: Task, device: str) -> dict[str, Tensor]:
    settings = task.settings
    print(f"{task.name}: pretraining, {settings.pretraining_steps} steps", file=sys.stderr, flush=True)
    torch.manual_seed(SEED)
    network = task.pretraining_network().to(device)
    losses = train(
        network,
        lambda step: task.pretraining_loss(network, step),
        steps=settings.pretraining_steps,
        learning_rate=settings.pretraining_rate,
    )
    shown = ", ".join(f"{loss:.2f}" for loss in losses[:: max(1, len(losses) // 10)])
    print(f"{task.name}: pretraining loss {shown}", file=sys.stderr, flush=True)
    return {n: t.cpu().contiguous() for n, t in network.state_dict().items() if n.startswith(task.pretrained)}
