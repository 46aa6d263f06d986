"""Commands, help and exit codes."""
