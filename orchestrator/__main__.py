"""Entry of the command ``orchestrator`` and of ``python -m orchestrator``."""

import os
import sys

from orchestrator.garbage import collect_rarely
from orchestrator.import_path import leave_out_current_folder


def main() -> None:
    """Run the command line, with nothing imported from the user's current folder."""
    leave_out_current_folder()
    collect_rarely()
    from orchestrator.account import complete_account

    complete_account(os.environ)
    try:
        from orchestrator.cli.app import main as run_command_line
    except KeyboardInterrupt:
        sys.exit(130)

    run_command_line()


if __name__ == "__main__":
    main()
