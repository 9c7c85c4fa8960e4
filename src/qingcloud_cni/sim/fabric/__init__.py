"""Simulated hardware from network namespaces, bridges and veth pairs."""
