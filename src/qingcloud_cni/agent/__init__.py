"""The agent: the table of NICs of this host and everything that keeps it true."""
