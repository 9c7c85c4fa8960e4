"""Simulated lives of a host and its agent, each from a seed, and what must hold in every one: `make sim`."""
