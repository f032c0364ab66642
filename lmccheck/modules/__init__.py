"""A torch module by itself: what it stores, private copies, and runs with given weights in one precision."""
