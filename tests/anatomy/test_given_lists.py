"""A module is looked at with the arguments that it was given, also when it wrote into their lists."""

from __future__ import annotations

import torch
from torch import nn

from revsurgeon.anatomy.probe import probe
from tests.models import Residual


class Pool(nn.Module):
    """As pytorchvideo pools its pathways: it writes into the list that it was given, and joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(4)

    def forward(self, pathways: list[torch.Tensor]) -> torch.Tensor:
        for number in range(len(pathways)):
            pathways[number] = self.pool(pathways[number])
        return torch.cat(pathways, dim=1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual(4), Residual(4), Pool()])

    def forward(self, pathways: list[torch.Tensor]) -> torch.Tensor:
        for block in self.blocks[:-1]:
            pathways[0] = block(pathways[0])
        return self.blocks[-1](pathways)


def test_a_call_keeps_the_lists_that_it_was_given_and_not_what_was_written_into_them() -> None:
    given = [torch.randn(2, 3, 4), torch.randn(2, 3, 4)]
    root, _ = probe(Network(), (given,))
    (last,) = [call for call in root.children if call.path == "blocks.2"]
    # Run again on what it left behind, of length one, the pooling would fail.
    assert [tuple(tensor.shape) for tensor in last.args[0]] == [(2, 3, 4), (2, 3, 4)]
    assert list(last.inputs.values()) == last.args[0]
