"""``python -m orchestrator``: the same as the command ``orchestrator``."""

from orchestrator.cli.app import main

main()
