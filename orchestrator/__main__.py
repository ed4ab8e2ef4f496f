"""Entry of the command ``orchestrator`` and of ``python -m orchestrator``."""

from orchestrator.import_path import leave_out_current_folder


def main() -> None:
    """Run the command line, with nothing imported from the user's current folder."""
    leave_out_current_folder()
    from orchestrator.cli.app import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
