//! smcached
pub mod cache;
pub mod config;
pub mod metrics;
pub mod secret;
pub mod source;
