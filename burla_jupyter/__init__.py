"""The notebook extension: to come. `remote_parallel_map` itself works in notebooks without it."""
