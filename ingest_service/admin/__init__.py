"""The admin pages: rows looked at and deleted, over a connection of their own. Only where ADMIN_DATABASE_URL is set."""
