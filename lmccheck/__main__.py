"""``python -m lmccheck``: the command line."""

from lmccheck.cli import main

raise SystemExit(main())
