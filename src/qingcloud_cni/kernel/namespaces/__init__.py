"""Network namespaces, their settings, and the threads that visit them."""
