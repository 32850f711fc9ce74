"""The `tokentrue` command, one file per sub-command."""
