"""One torch thread for all tests: the networks are small, and a second thread would only wait."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
