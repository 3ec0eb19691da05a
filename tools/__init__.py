"""What a user runs that is not one of the four scripts."""
