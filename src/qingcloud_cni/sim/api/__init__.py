"""The API of the simulated cloud: signatures, HTTP, fault injection."""
