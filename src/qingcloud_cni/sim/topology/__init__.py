"""The hardware of a simulated cloud as data."""
