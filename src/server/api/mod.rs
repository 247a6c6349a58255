//! The ways in over HTTP, one file each: they parse, resolve to a key, ask the gate and the cache, and
//! render. `field` cuts one field out of a JSON secret for any of them.

mod field;
pub(super) mod native;
