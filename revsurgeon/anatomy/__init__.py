"""Find residual structure in any network by its dataflow."""

from revsurgeon.anatomy.inspect import inspect
from revsurgeon.anatomy.report import Anatomy, Block, Chain, Reason, Segment, Skipped

__all__ = ["Anatomy", "Block", "Chain", "Reason", "Segment", "Skipped", "inspect"]
