"""Errors for arguments that do not fit, and for losses and updates whose derivative would be wrong."""
