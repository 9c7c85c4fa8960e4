"""Simulated hardware in memory, for agents on a virtual clock."""
