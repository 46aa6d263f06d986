"""The command line: commands, help and exit codes; the work is done in the rooms below."""
