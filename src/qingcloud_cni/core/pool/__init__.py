"""What the pool needs: the planner, the vxnet policies, and reasons in words."""
