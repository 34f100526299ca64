"""One module a kind, as `app/schemas/kinds` has it."""
