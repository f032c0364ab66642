"""The alignment methods, one file each."""
