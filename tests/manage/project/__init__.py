"""A Django project of somebody else, who has never heard of Rollcall."""
