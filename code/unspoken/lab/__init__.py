"""The lab: tasks, arms, measures, statistics, runs and reports."""
