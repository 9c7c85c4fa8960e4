"""Neighbours in a vxnet: ARP probes, announcements, tracked flows."""
