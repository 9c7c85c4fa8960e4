"""The simulated QingCloud: cloud, hosts and network on one machine or in memory."""
