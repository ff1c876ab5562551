"""What people read: the verdict in words, the tables and figures, and the page, all from results.json alone."""
