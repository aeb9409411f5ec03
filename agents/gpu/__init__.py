"""What the cards of this machine say: sources of readings, a watch that never waits for a driver, summaries of logs."""
