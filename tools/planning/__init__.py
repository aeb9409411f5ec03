"""The planner's side: who is asked (`asking`, `command`, `provider`), what is said (`prompts`), what is kept (`book`), who may
answer on a folder (`seat`), the loop over escalations (`loop`) and new plans (`drafting`)."""
