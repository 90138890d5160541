"""`python -m cli` is `darkroom`."""

from cli.main import main

main()
