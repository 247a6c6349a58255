//! The values of all variables, fetched together: all of them or none.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::variables::{Variable, Variables};
use crate::cli::Exit;
use crate::cli::daemon::{Daemon, Failure, Target, Version};

/// How many secrets are asked for at once.
const MAX_CONCURRENCY: usize = 16;

/// How often fields are fetched again that turn out to be of different versions.
const MAX_ROUNDS: usize = 3;

/// The values, by variable. Not printable.
pub(super) struct Values(Vec<Value>);

struct Value {
    name: String,
    secret: Target,
    bytes: Bytes,
    /// The entity tag of the secret's version.
    etag: String,
}

/// Why a variable has no value.
#[derive(Debug)]
pub(super) struct Failed {
    name: String,
    reference: String,
    why: Why,
}

#[derive(Debug)]
enum Why {
    NotGiven(Arc<Failure>),
    /// It cannot be in an environment (environ(7)).
    Nul,
}

impl Values {
    /// Asks for all of them, each secret once.
    pub(super) async fn fetch(daemon: &Daemon, variables: &Variables) -> Result<Self, Vec<Failed>> {
        let mut round = 1;
        loop {
            let values = Self::fetch_once(daemon, variables).await?;
            // A password of one version is of no use with a user of another.
            if values.agree() || round == MAX_ROUNDS {
                return Ok(values);
            }
            round += 1;
        }
    }

    async fn fetch_once(daemon: &Daemon, variables: &Variables) -> Result<Self, Vec<Failed>> {
        let given = versions(daemon, variables.iter().map(Variable::target)).await;
        let (mut values, mut failed) = (Vec::new(), Vec::new());
        for variable in variables.iter() {
            let why = match &given[&variable.target()] {
                Ok(version) if version.value.contains(&0) => Why::Nul,
                Ok(version) => {
                    values.push(Value {
                        name: variable.name.clone(),
                        secret: variable.secret.clone(),
                        bytes: version.value.clone(),
                        etag: version_tag(&version.etag),
                    });
                    continue;
                }
                Err(failure) => Why::NotGiven(Arc::clone(failure)),
            };
            failed.push(Failed { name: variable.name.clone(), reference: variable.reference.clone(), why });
        }
        if failed.is_empty() { Ok(Self(values)) } else { Err(failed) }
    }

    /// Whether all values of a secret are of one version of it.
    fn agree(&self) -> bool {
        let secrets = self.secrets();
        self.0.iter().all(|value| secrets[&value.secret] == value.etag)
    }

    /// Each secret once, with the entity tag of its version.
    pub(super) fn secrets(&self) -> HashMap<&Target, &str> {
        self.0.iter().map(|value| (&value.secret, value.etag.as_str())).collect()
    }

    /// The names and values, as an environment has them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        self.0.iter().map(|value| (value.name.as_str(), OsStr::from_bytes(&value.bytes)))
    }

    /// Whether an environment with these is the same as one with those.
    pub(super) fn are_those_of(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

type Given = Result<Version, Arc<Failure>>;

/// Asks for each of these once, some at a time.
async fn versions(daemon: &Daemon, targets: impl Iterator<Item = Target>) -> HashMap<Target, Given> {
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENCY));
    let mut asking = JoinSet::new();
    for target in targets.collect::<HashSet<_>>() {
        let (daemon, permits) = (daemon.clone(), Arc::clone(&permits));
        asking.spawn(async move {
            let _permit = permits.acquire().await;
            let given = daemon.read(&target).await.map_err(Arc::new);
            (target, given)
        });
    }
    asking.join_all().await.into_iter().collect()
}

/// The entity tag of a version, from that of one of its fields: the latter has `#<field>` within the quotes.
fn version_tag(etag: &str) -> String {
    match etag.split_once('#') {
        Some((version, _)) => format!("{version}\""),
        None => etag.to_owned(),
    }
}

impl Failed {
    pub(super) fn exit(&self) -> Exit {
        match &self.why {
            Why::NotGiven(failure) => failure.exit(),
            Why::Nul => Exit::Usage,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}: ", self.name, self.reference)?;
        match &self.why {
            Why::NotGiven(failure) => failure.fmt(f),
            Why::Nul => {
                f.write_str("the value has a NUL byte, which no environment can hold; read it as a file")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Values {
        /// These values of one secret.
        pub(in crate::cli::exec) fn of(values: &[(&str, &'static str)]) -> Self {
            let value = |(name, value): &(&str, &'static str)| Value {
                name: (*name).to_owned(),
                secret: Target::of_word("a/b"),
                bytes: Bytes::from_static(value.as_bytes()),
                etag: "\"v1\"".to_owned(),
            };
            Self(values.iter().map(value).collect())
        }
    }

    #[test]
    fn the_tag_of_a_field_tells_the_version() {
        assert_eq!(version_tag("\"v1\""), "\"v1\"");
        assert_eq!(version_tag("\"v1#user%23\""), "\"v1\"");
    }

    #[test]
    fn fields_of_two_versions_are_noticed() {
        let mut values = Values::of(&[("USER", "ada"), ("PASSWORD", "x")]);
        assert!(values.agree());
        values.0[1].etag = "\"v2\"".to_owned();
        assert!(!values.agree());
    }
}
