"""The interfaces between the agent and the world, one file each, with the data that crosses it."""
