"""The `darkroom` command: a client of the API, plus what starts the processes."""
