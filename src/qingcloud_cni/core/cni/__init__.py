"""The CNI protocol: configurations, results, versions, CHECK, GC, spooled DELs."""
