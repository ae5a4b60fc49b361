"""`python -m saetool` and `torchrun -m saetool` are the command `saetool`."""

from saetool.cli import main

main()
