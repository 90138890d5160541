"""The `darkroom` command: a client of the web's API, and what starts the web and the workers."""
