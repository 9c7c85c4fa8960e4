"""The HTTP API of the agent: CNI requests, views, metrics."""
