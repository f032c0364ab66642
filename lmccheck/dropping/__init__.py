"""Networks with units dropped: which ones are kept, refits, masks, and what dropping costs."""
