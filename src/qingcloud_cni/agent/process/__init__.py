"""The agent as a process: start, listeners, lock, files, clean-up."""
