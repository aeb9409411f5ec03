"""A folder whose rig is gone: read what it still says, make a new state of it, or take it over."""
