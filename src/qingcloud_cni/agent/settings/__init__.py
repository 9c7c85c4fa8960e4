"""Settings: their table, their sources and the formats of the config file."""
