"""Makes `python -m revsurgeon.cli` the same as the `revsurgeon` command."""

from revsurgeon.cli import main

main()
