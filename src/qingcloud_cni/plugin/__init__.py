"""The CNI plugin: one file that imports nothing else of ours."""
