"""Data, and the code that users bring: read, described, collated, cut into batches; imported from its own folder."""
