"""Where the README's figures come from. Run a file as `python -m benchmarks.NAME`; results are JSON."""
