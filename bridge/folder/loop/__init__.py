"""What every room's work runs on: the clock, flows that wait in the middle, questions that the broker may answer later."""
