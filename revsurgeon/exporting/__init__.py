"""From a finetuned reversible network to a program for inference, or to plain weights."""

from revsurgeon.exporting.export import Export, export

__all__ = ["Export", "export"]
