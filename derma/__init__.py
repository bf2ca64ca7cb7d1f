"""What the notebooks, the worker processes and get_results.py share; one module for each step of the data's way."""
