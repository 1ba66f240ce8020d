"""The peers of the services: the least work that the same server can do, and the simple way to do the job."""
