"""Containers on real interfaces while everything that can die dies: `make chaos`.

Runtimes (`runtimes`) drive the installed plugin, trouble (`trouble`) befalls agents, plugins, the cloud and links,
and a watcher (`watcher`) looks at the kernel all the while: what an ADD promised holds until somebody meddles with
that container (`ledger`). At the end, with all trouble over, the counts of cloud, table and kernel must agree
(`accounts`).
"""
