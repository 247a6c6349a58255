//! smcached
pub mod access;
pub mod cache;
pub mod config;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod secret;
pub mod server;
pub mod source;
