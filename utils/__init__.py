"""What the scripts share: one file per concern."""
