"""The one room that runs networks for a verdict: losses at points, lines and masks, and what is seen on the way."""
