"""What every part of the agent uses: tasks, time, the journal, logs, the shared context."""
