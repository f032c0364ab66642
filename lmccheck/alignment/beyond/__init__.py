"""Maps beyond permutations that keep a network's function: rescaling, sign flips, head maps, rotation of the stream."""
