"""NICs of instances that no longer exist; needs no running agent."""
