"""`python -m extract` is `liteeval-extract`."""

from extract.cli import main

main()
