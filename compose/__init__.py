"""The deployment: containers, the edge, the stores' roles, the monitoring; `local/` runs a whole stack on this machine."""
