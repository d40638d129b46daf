"""What `benchmarks/landscape.py` measures of training runs that have been made."""
