"""Writers of registrations, fields and transforms."""
