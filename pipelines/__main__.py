"""`python -m pipelines` is `liteeval`."""

from pipelines.cli import main

main()
