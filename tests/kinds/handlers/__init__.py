"""One module a kind, as `app/jobs/handlers` has it."""
