"""The commands `qingagent` and `qingcloud-sim`."""
