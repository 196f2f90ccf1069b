"""One run: a task, an arm and a seed give a row of figures."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

import revsurgeon as rs
from benchmarks.finetune.arms import Arm
from benchmarks.finetune.pretrained import load_weights
from benchmarks.finetune.task import Batch, Task, beside
from benchmarks.finetune.training import DivergedError, train

_PROBE = 10**6
"""The step whose batch the gradients' error is measured on; no training gets there."""


def run(task: Task, arm: Arm, seed: int, weights: dict[str, Tensor], device: str = "cpu") -> dict[str, Any]:
    """Finetune once.

    Args:
        task: what for.
        arm: how.
        seed: of the head, of the choice of samples and of the batches; the same for all arms.
        weights: of pretraining.
        device: "cpu" or "cuda".

    Returns:
        A row. Its status is "done", "diverged" (a loss or gradient that is not finite) or "failed" (the
        library or torch raised); a run without a result is a result.
    """
    start = time.process_time()  # a clock on the wall would measure the neighbours
    row: dict[str, Any] = {"task": task.name, "arm": arm.name, "seed": seed}
    row |= {"settings": task.settings.to_dict()}
    if device == "cuda":
        row |= {"gpu": torch.cuda.get_device_name()}
    try:
        row |= {"status": "done", **_figures(task, arm, seed, weights, device)}
    except DivergedError as error:
        row |= {"status": "diverged", "detail": str(error)}
    except (rs.RevsurgeonError, RuntimeError, ArithmeticError) as error:
        row |= {"status": "failed", "detail": f"{type(error).__name__}: {error}"[:300]}
    return {**row, "cpu_seconds": round(time.process_time() - start, 1)}


def _figures(task: Task, arm: Arm, seed: int, weights: dict[str, Tensor], device: str) -> dict[str, Any]:
    steps = task.settings.steps
    torch.manual_seed(seed)
    network = task.network()
    if arm.pretrained:
        load_weights(network, weights)
    network.to(device)
    if arm.frozen:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith(task.backbone))
    recipe = arm.recipe(steps)
    if recipe is None:
        losses = _trained(task, network, seed)
        return _ended(task, network, losses)
    probe = task.batch(seed, _PROBE)
    rs.rewire(network, example_inputs=beside(network, probe)[0], recipe=recipe)
    schedule = rs.CoefficientSchedule.from_manifest(network, total_steps=steps)
    figures: dict[str, Any] = {
        "recipe": recipe.model_dump(exclude_none=True, exclude={"description"}),
        "arithmetic": sorted({chain.arithmetic for chain in rs.chains(network)}),
        "merge": sorted({chain.merge for chain in rs.chains(network)}),
        "segments": [sum(chain.segments) for chain in rs.chains(network)],
        "start": rs.get_coefficients(network),
        "gradient_error_at_start": gradient_error(task, network, probe),
    }
    losses = _trained(task, network, seed, schedule)
    figures |= {"end": rs.get_coefficients(network)}
    figures |= {"gradient_error_at_end": gradient_error(task, network, probe)}
    figures |= _ended(task, network, losses)
    rs.set_coefficients(network, 1.0, 0.0)
    return {**figures, "score_at_1_0": task.score(network)}


def _trained(
    task: Task, network: nn.Module, seed: int, schedule: rs.CoefficientSchedule | None = None
) -> list[float]:
    return train(
        network,
        lambda step: task.loss(network, task.batch(seed, step)),
        steps=task.settings.steps,
        learning_rate=task.settings.learning_rate,
        after_step=(lambda: None) if schedule is None else schedule.step,
    )


def _ended(task: Task, network: nn.Module, losses: list[float]) -> dict[str, Any]:
    last = losses[-max(1, len(losses) // 10) :]
    return {"score": task.score(network.eval()), "loss": sum(last) / len(last)}


def gradient_error(task: Task, network: nn.Module, batch: Batch) -> float | None:
    """||g_reversible - g_stored|| / ||g_stored|| of the loss on a batch; None where that is no number."""
    network.train()
    actual = _gradients(task, network, batch)
    with rs.stored_activations(network):
        expected = _gradients(task, network, batch)
    error = float((actual - expected).norm() / expected.norm())
    return error if torch.isfinite(torch.tensor(error)) else None


def _gradients(task: Task, network: nn.Module, batch: Batch) -> Tensor:
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(task.loss(network, batch), parameters, allow_unused=True)
    return torch.cat([g.double().flatten() for g in found if g is not None])
