"""Small faults, put into a copy of the package one at a time: each is to be caught by the tests that it names."""
