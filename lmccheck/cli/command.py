"""The commands of the command line, one file each; none imports anything heavy before it runs."""

from __future__ import annotations

import argparse
from typing import TypeAlias

HELD, BROKEN, WRONG = 0, 1, 2  # exit status

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
