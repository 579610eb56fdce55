"""`python -m liteeval_train` is `liteeval-train`."""

from liteeval_train.cli import main

main()
