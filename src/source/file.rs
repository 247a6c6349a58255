//! A file of secrets.
