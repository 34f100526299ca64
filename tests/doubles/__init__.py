"""Stand-ins for what no test machine has. Each says what it was checked against and what it cannot know."""
