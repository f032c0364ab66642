"""Paths in weight space and what is known of the loss along them."""
