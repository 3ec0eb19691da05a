"""The paper's central comparison at a size that a laptop repeats."""
