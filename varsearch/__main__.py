"""`python -m varsearch` is the `varsearch` command."""

from varsearch.cli.main import entry

entry()
