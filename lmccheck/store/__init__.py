"""What comes in and goes out: checkpoints, documents, data, and the user's code, imported from its own folder."""
