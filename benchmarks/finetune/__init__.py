"""Finetune one pretrained network in many ways, to see which of the papers' claims hold at a small size."""
