"""Cloud operations, each from its intent to its end: provisioning and release of NICs, jobs, lookups."""
