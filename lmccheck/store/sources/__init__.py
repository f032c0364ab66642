"""The kinds of checkpoints that can be opened, one file each."""
