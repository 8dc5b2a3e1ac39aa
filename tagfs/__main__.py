"""`python -m tagfs`: the command without its script.  Pure."""

import sys

from tagfs.cli import main

sys.exit(main())
