"""``python -m lmccheck``: the command line."""

from lmccheck.cli.main import main

raise SystemExit(main())
