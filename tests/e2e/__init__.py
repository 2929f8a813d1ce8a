"""End to end: rendered projects, run as their users run them."""
