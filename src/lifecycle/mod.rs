//! The life of the process: why it is not ready yet, who watches its tasks, how it ends, and who is told of it.
//!
//! A leaf: it knows nothing of secrets or HTTP.

mod drain;
mod readiness;
mod service_manager;
mod signals;
mod supervisor;

pub use drain::{Drain, DrainWatcher};
pub use readiness::{BlockReady, Readiness};
pub use service_manager::{ServiceManager, watchdog};
pub use signals::{Signals, Told};
pub use supervisor::{Supervisor, TaskEnd};
