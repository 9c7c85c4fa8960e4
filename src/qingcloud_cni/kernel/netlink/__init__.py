"""Netlink: the codec, its socket, and the message families in use."""
