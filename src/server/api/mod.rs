//! The ways in over HTTP, one file each: they parse, resolve to a key, have the visit read it, and
//! render. `metadata` renders a version as JSON, `query` reads parameters, `cache_status` tells where an answer
//! comes from: for any of them.

pub(super) mod agent;
pub(super) mod cache_status;
mod metadata;
pub(super) mod native;
mod query;
pub(super) mod sdk;
