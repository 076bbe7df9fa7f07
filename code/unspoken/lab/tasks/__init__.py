"""Tasks: where sources, questions and right answers come from."""

from __future__ import annotations

from unspoken.registry import Registry

TASKS = Registry(
    "task",
    "unspoken.tasks",
    {"private-facts": "unspoken.lab.tasks.private_facts:PrivateFacts"},
)
