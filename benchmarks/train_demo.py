"""Train the network that `revsurgeon convert demo` converts, and write it where the package ships it.

Run it as `python benchmarks/train_demo.py`: about two minutes on two CPU cores, no network. It
writes config.json (the format that timm uses on the Hub), model.safetensors and README.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from digits import MEAN, SPLIT_SEED, STD, Digits, load_split
from safetensors.torch import save_file
from torch import Tensor, nn

DEMO = Path(__file__).parent.parent / "revsurgeon" / "sources" / "demo"
ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 40, "depth": 6, "num_heads": 4}
NUM_CLASSES = 10
WEIGHTS_SEED = 0
BATCH_SIZE = 64


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image (N, 1, 8, 8) a little, as another hand would have written it."""
    uniform = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle = uniform[0] * math.radians(15)
    zoom = 1 + 0.12 * uniform[1]
    shift_x, shift_y = uniform[2] * 0.25, uniform[3] * 0.25  # of half the width: one pixel
    rows = [
        torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift_x], dim=1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    # Black is the background: shift it to 0, the value that grid_sample pads with.
    black = -MEAN / STD
    return F.grid_sample(images - black, grid, align_corners=False) + black


def train(digits: Digits, epochs: int) -> nn.Module:
    """Train from scratch; the last weights are kept, so the test images choose nothing."""
    torch.manual_seed(WEIGHTS_SEED)
    model = timm.create_model(ARCHITECTURE, num_classes=NUM_CLASSES, drop_path_rate=0.1, **MODEL_ARGS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (len(digits.train_labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(WEIGHTS_SEED)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(digits.train_labels), generator=generator)
        for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            logits = model(jitter(digits.train_images[batch], generator))
            loss = F.cross_entropy(logits, digits.train_labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}  training loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def count_correct(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return how many images (N, 1, 8, 8) the model puts into their own class."""
    return int((model(images).argmax(dim=1) == labels).sum())


def hub_config(model: nn.Module) -> dict[str, object]:
    """Return the config.json that timm's Hub loader reads."""
    return {
        "architecture": ARCHITECTURE,
        "num_classes": NUM_CLASSES,
        "num_features": model.num_features,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "tag": "digits",
            "license": "apache-2.0",
            "num_classes": NUM_CLASSES,
            "input_size": [1, MODEL_ARGS["img_size"], MODEL_ARGS["img_size"]],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [MEAN],
            "std": [STD],
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


README = """\
# The demo network

A vision transformer ({depth} blocks of width {width}, {parameters:,} parameters) trained from scratch on
the UCI handwritten digits as scikit-learn ships them: 1797 grey images of 8 x 8 pixels. It is small
enough to travel in the package and really trained, so that `revsurgeon convert demo` and
`revsurgeon demo` work on a network that knows something, without a network connection.

Test accuracy: {accuracy:.4f} ({correct} of {images} images)

- The split is `load_split` in `benchmarks/digits.py` (seed {seed}): the first {images} images of the
  permutation are the test set, and nothing was chosen by looking at them.
- Images are scaled to [0, 1] and normalised with mean {mean} and standard deviation {std}.
- Made by `python benchmarks/train_demo.py`. Another processor or another version of torch rounds
  otherwise and ends at slightly different weights; a test holds the shipped ones to the figure above.
- `config.json` and `model.safetensors` have the format of a timm repository on the Hub.

The digits: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998, CC BY 4.0. The weights: Apache-2.0, like the package.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--output", type=Path, default=DEMO)
    options = parser.parse_args()
    digits = load_split()
    model = train(digits, options.epochs)
    correct = count_correct(model, digits.test_images, digits.test_labels)
    images = len(digits.test_labels)
    options.output.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, options.output / "model.safetensors", metadata={"format": "pt"})
    (options.output / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    config = json.dumps(hub_config(model), indent=2) + "\n"
    (options.output / "config.json").write_text(config, encoding="utf-8")
    readme = README.format(
        depth=MODEL_ARGS["depth"],
        width=MODEL_ARGS["embed_dim"],
        parameters=sum(p.numel() for p in model.parameters()),
        accuracy=correct / images,
        correct=correct,
        images=images,
        seed=SPLIT_SEED,
        mean=MEAN,
        std=STD,
    )
    (options.output / "README.md").write_text(readme, encoding="utf-8")
    print(f"test accuracy {correct / images:.4f} ({correct} of {images}), written to {options.output}")


if __name__ == "__main__":
    main()
