"""`python -m minislice` is the command `minislice`."""

import sys

from .cli import main

sys.exit(main())
