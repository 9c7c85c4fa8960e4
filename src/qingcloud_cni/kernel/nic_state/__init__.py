"""The state of a NIC's link: described as the cloud plugged it in, restored, compared before it serves again."""
