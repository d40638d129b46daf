"""Two hosts on one machine, made of Linux namespaces: for tests and for measurements between nodes."""
