"""Groups of commands: parse, call, print. Whatever is heavy is imported when a command runs."""
