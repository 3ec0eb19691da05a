"""What holds on the GPU at hand: `python -m tools.check_gpu`, whose table of checks is in __main__.py."""
