"""Links: what is a NIC, and how it is parked, attached, detached or used as a gateway."""
