"""The pytest face: options, collection, items, what they load, fixtures, and the summary of a run."""
