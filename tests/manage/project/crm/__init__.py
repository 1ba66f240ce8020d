"""Its only application: customers and their orders."""
