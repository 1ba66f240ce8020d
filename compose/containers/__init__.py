"""`python -m compose.containers`: brings the deployment up in real containers, and does with it what an operator does.

It works in a copy of the checkout, in a folder of its own, under a project name of its own. So it touches no deployment that
runs on this machine. `engine` is Docker or Podman, `standins` the base images where none can be pulled, `trial` the steps.
"""
