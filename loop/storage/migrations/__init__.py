"""The migrations, in the wheel, run by `loop.storage.migrate`."""
