"""``python -m orchestrator``: the same as the command ``orchestrator``."""

from orchestrator.cli import main

main()
