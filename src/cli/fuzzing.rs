//! What commands ask for, for fuzzing: their types are theirs alone.

use super::{exec, init};
use crate::secret::SecretId;

/// The paths and queries of what `exec` asks for, were this the argument of `--env` or `--flyte`.
pub(crate) fn exec_targets(argument: &str) -> Vec<String> {
    exec::targets(argument)
}

/// The path and query of what `init` asks a daemon for, and the id by which it asks AWS, were this `SECRET_ARN`.
pub(crate) fn init_target(secret_arn: &str) -> Option<(String, SecretId)> {
    init::target(secret_arn)
}
