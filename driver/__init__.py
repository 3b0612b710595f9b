"""What people use: the Python interface, the command line and the report."""
