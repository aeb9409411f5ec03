"""What passes on the bus, as records (``records``) and as people see it (``view``). Pure."""
