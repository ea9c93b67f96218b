"""Parts that are not for users; they may change at any time."""
