"""The command line: one file per command group, the only prints, the only exit codes."""
