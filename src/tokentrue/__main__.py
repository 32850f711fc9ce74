"""`python -m tokentrue`: the same as the `tokentrue` command."""

from tokentrue.cli.main import main

main()
