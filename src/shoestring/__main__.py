"""python -m shoestring: the command line."""

from .cli.main import main

main()
