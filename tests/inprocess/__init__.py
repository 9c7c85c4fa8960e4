"""Whole agents in the test's process, on a virtual clock: their hosts, processes, disks and network."""
