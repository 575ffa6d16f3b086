"""What keeps a run from being lost: checkpoints, the lock, room on disk, signals, crashes."""
