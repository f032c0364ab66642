"""The command line ``lmccheck``: one file per command; none imports anything heavy before it runs."""
