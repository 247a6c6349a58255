//! The words of the domain: what a secret is called, which version of it is meant, and its value.
//!
//! Everything else imports this module; it imports nothing of ours. Each type carries its rule: a
//! [`SecretId`] cannot be malformed, a [`SecretValue`] cannot be printed, a [`SecretKey`] names one
//! cacheable thing whatever spelling it came from.

mod arn;
mod description;
mod field;
mod id;
mod path;
mod resolve;
mod value;
mod version;

pub use arn::{Arn, ArnError, CompleteArn, is_region, partition_of};
pub use description::{DescribedTag, ReplicationStatus, RotationRules, SecretDescription};
pub use field::Field;
pub use id::{MAX_ID_BYTES, ReferenceError, SecretId};
pub use path::{SecretPath, percent_decode};
pub use resolve::{DEFAULT_GROUP, Group, Origin, Resolver, SecretKey, Unlisted, with_region};
pub use value::{SecretValue, SecretVersion};
pub use version::{CURRENT_STAGE, VersionSelector, VersionSelectorError};
