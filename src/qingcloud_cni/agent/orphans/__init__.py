"""NICs of instances that no longer exist."""
