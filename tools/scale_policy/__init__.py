"""Which scale each block of an Elastic net prefers, picture by picture."""
