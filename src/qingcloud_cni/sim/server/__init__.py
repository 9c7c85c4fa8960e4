"""The simulator as a program: start, status, control, topology files."""
