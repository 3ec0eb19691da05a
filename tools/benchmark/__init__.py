"""Speed and memory of nets, and speed of loaders."""
