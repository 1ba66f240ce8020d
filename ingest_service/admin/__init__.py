"""The admin pages show rows and delete them, over a connection of their own. Only if ADMIN_DATABASE_URL is set."""
