"""Tests of what the README's figures come from."""
