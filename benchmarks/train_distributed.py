r"""Finetune a converted network on many processes, with DDP or FSDP2, and resume from its checkpoints.

Convert the network once: `revsurgeon convert demo` writes demo-dr2. Then, on one machine with 8 GPUs (or on a
CPU, with --nproc-per-node 2):

    torchrun --standalone --nproc-per-node 8 benchmarks/train_distributed.py \
        --source demo-dr2 --strategy fsdp --steps 100 --checkpoint runs/demo

On 4 such machines, the same on each of them; HOST is the name of one, and all of them see --checkpoint:

    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-id demo --rdzv-backend c10d --rdzv-endpoint HOST:29400 \
        benchmarks/train_distributed.py --source demo-dr2 --strategy fsdp --steps 100 --checkpoint runs/demo

With --resume it goes on from the newest checkpoint, whatever strategy and number of processes wrote it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import revsurgeon as rs

Batches = Callable[[int], tuple[Tensor, Tensor]]


def distributed(model: nn.Module, strategy: str, device: torch.device) -> nn.Module:
    """The network as the processes train it together."""
    if strategy == "ddp":
        return DistributedDataParallel(model.to(device))
    for chain in rs.chains(model):
        for path in dict.fromkeys(chain.blocks):  # a block that is called twice is sharded once
            fully_shard(model.get_submodule(path))
    return fully_shard(model)


def training_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, schedule: rs.CoefficientSchedule
) -> dict[str, Any]:
    """All that a checkpoint holds; the chains' coefficients are in the schedule's state."""
    weights, moments = get_state_dict(network, optimizer)
    return {"model": weights, "optimizer": moments, "schedule": schedule}


def resume(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: rs.CoefficientSchedule,
) -> None:
    """Load the newest checkpoint that was written to its end; without one, nothing is changed."""
    complete = sorted(file.parent for file in folder.glob("step-*/.metadata"))
    if not complete:
        return
    state = training_state(network, optimizer, schedule)
    dcp.load(state, checkpoint_id=complete[-1])  # in place; the schedule sets the chains' coefficients
    set_state_dict(network, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def train(options: argparse.Namespace, batches: Batches) -> None:
    """Train in a process group that is there already."""
    device = this_device()
    model = rs.load(options.source).train()
    network = distributed(model, options.strategy, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate)
    schedule = rs.CoefficientSchedule.from_manifest(model, total_steps=options.steps)
    if options.resume:
        resume(options.checkpoint, network, optimizer, schedule)
    while schedule.steps_done < options.steps:
        images, labels = batches(schedule.steps_done)
        loss = F.cross_entropy(network(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()  # moves the coefficients
        done = schedule.steps_done
        if dist.get_rank() == 0:
            alpha, beta = rs.get_coefficients(model)
            print(f"step {done}: loss {loss.item():.4f}, now at ({alpha:.3g}, {beta:.3g})", flush=True)
        if options.checkpoint and (done % options.save_every == 0 or done == options.steps):
            state = training_state(network, optimizer, schedule)
            dcp.save(state, checkpoint_id=options.checkpoint / f"step-{done:08d}")
    if options.output:
        export(options, network, schedule)


def export(options: argparse.Namespace, network: nn.Module, schedule: rs.CoefficientSchedule) -> None:
    """Write the finetuned network as `revsurgeon.load` reads it: gathered, by one process."""
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(network, options=gathered)
    if dist.get_rank() == 0:
        whole = rs.load(options.source)
        whole.load_state_dict(weights)
        rs.CoefficientSchedule.from_manifest(whole, options.steps).load_state_dict(schedule.state_dict())
        rs.save(whole, options.output)


def this_device() -> torch.device:
    """This process's own GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def digits(batch_size: int) -> Batches:
    """The data: put your own here. A batch is known by its step, so that a resumed run sees the same ones."""
    from digits import load_split

    split = load_split()
    rank, processes = dist.get_rank(), dist.get_world_size()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(step * processes + rank)  # dropout, if the network has any
        order = torch.randperm(len(split.train_labels), generator=torch.Generator().manual_seed(step))
        mine = order.roll(-rank * batch_size)[:batch_size]
        return split.train_images[mine], split.train_labels[mine]

    return batch


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--source", type=Path, default=Path("demo-dr2"), help="the directory that revsurgeon convert wrote")
    add("--strategy", choices=("ddp", "fsdp"), default="fsdp")
    add("--steps", type=int, default=100, help="of the whole training, all resumed runs together")
    add("--batch-size", type=int, default=32, help="of each process")
    add("--learning-rate", type=float, default=1e-4)
    add("--checkpoint", type=Path, help="directory of the checkpoints; without it none is written")
    add("--save-every", type=int, default=50, help="steps between two checkpoints")
    add("--output", type=Path, help="directory to write the finetuned network to, for revsurgeon.load")
    add("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    options = parser.parse_args(arguments)
    if options.resume and not options.checkpoint:
        parser.error("--resume needs --checkpoint")
    return options


def main() -> None:
    options = parsed()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(options, digits(options.batch_size))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
