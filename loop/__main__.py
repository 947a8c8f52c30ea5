"""`python -m loop` is the same program as `loop`."""

from loop.cli import main

main()
