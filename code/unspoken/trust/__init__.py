"""Trust in cache files: keys, seals, known senders, replays, encryption. `docs/trust.md` says what each stops."""
