"""The page in the browser: runs, a run, data, plan, a new run, a chat; on this machine alone."""
