"""What a network can do on a whole cell of a line, not only at points of it: enclosures, and bounds of the loss."""
