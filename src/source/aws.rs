//! Secrets Manager itself.
