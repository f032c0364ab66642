"""Checkpoints and documents: where weights lie, what files say of themselves, how they are written and compared."""
