"""Containers on real interfaces while every process may die: `make chaos`.

Runtimes (`runtimes`) start the installed plugin, disturbances (`disturbances`) hit agents, plugins, cloud and links,
and a watcher (`watcher`) compares the kernel with the promises of ADDs (`promises`), which hold until a container is
disturbed. After the disturbances the counts of cloud, table and kernel must agree (`final_check`).
"""
