"""The only room that knows SQL: functions that take a session and never commit."""
