"""Where a run is carried out: this machine, a host by SSH, clouds through SkyPilot or dstack, vendors' own training."""
