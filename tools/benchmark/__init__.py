"""Speed and memory of nets, speed of loaders, and the time to the first batch."""
