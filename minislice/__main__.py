"""`python -m minislice` is the command `minislice`."""

import sys

from .command.cli import main

sys.exit(main())
