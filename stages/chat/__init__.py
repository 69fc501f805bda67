"""Conversations and rankings of users: rows of many formats, chat formats, token ids and masks."""
