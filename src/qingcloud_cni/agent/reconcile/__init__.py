"""Table, kernel and cloud compared, and the remedies for what differs."""
