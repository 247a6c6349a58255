//! AWS Secrets Manager. The only module that knows the AWS SDK.
//!
//! One call, `GetSecretValue`, is all that is needed: it is all that the usual policy grants. `batch` asks for
//! several secrets in one call, `list` for the names of those with a tag and `describe` for all but the value, where
//! that is granted too; `credentials` outlive a failure to renew them; `clients` makes and renews an SDK client per
//! region and role; `classify` says what an error means, `clock` what time it is at AWS. Every call is one attempt:
//! retries are the cache's.

mod batch;
mod classify;
mod clients;
mod clock;
mod credentials;
mod describe;
mod list;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use aws_sdk_secretsmanager::primitives::{Blob, DateTime};

use self::classify::classify;
use self::clients::{Clients, Place};
use super::{Fetching, FetchingBatch, Listing, Probing, SecretSource, SourceError, Tag};
use crate::hardening;
use crate::secret::{SecretKey, SecretValue, SecretVersion};

/// The longest that the AWS SDK looks for an identity by its own default, and so the longest that is ever sensible.
pub const IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);

/// How AWS is reached. What is `None` is left to the SDK's own chain.
#[derive(Clone)]
pub struct AwsOptions {
    /// The region of names that have none.
    pub region: Option<String>,
    /// Where all AWS services are.
    pub endpoint_url: Option<String>,
    /// Where STS is, if elsewhere.
    pub sts_endpoint_url: Option<String>,
    /// A profile of the shared configuration.
    pub profile: Option<String>,
    /// The role for keys that name none.
    pub role_arn: Option<String>,
    /// The longest that a connection may take to open.
    pub connect_timeout: Duration,
    /// The longest that one attempt may take.
    pub attempt_timeout: Duration,
    /// The longest that a call may take, loading credentials included.
    pub operation_timeout: Duration,
    /// The longest that the SDK's chain may look for a region, or for credentials: less than a reader
    /// waits, so that the reader is told what is missing.
    pub identity_timeout: Duration,
    /// Certificates to trust instead of the system's, in PEM form.
    pub ca_bundle: Option<Vec<u8>>,
    /// Files from which the SDK takes credentials: when one changes, they are loaded anew.
    pub credential_files: Vec<PathBuf>,
}

/// Secrets Manager in every region and role that is asked for.
#[derive(Debug)]
pub struct AwsSource {
    clients: Clients,
}

impl AwsSource {
    /// Does nothing yet: clients are made on first use.
    pub fn new(options: AwsOptions) -> Self {
        Self { clients: Clients::new(options) }
    }

    /// By how many seconds this host's clock was ahead of AWS's when it last answered; `None` before that.
    pub fn clock_ahead(&self) -> Option<i64> {
        self.clients.clock_ahead()
    }

    async fn get_secret_value(&self, key: &SecretKey) -> Result<SecretVersion, SourceError> {
        let place = self.clients.place(key);
        let client = self.clients.client_at(&place).await?;
        let answer = client
            .get_secret_value()
            .secret_id(key.id.as_str())
            .set_version_id(key.selector.id().map(str::to_owned))
            .set_version_stage(key.selector.stage().map(str::to_owned))
            .send()
            .await;
        hardening::scrub_stack();
        match answer {
            Ok(output) => version(output),
            Err(error) => Err(self.renewing(&place, classify(&error)).await),
        }
    }

    /// Sees to it that rejected credentials are not used again.
    async fn renewing(&self, place: &Place, error: SourceError) -> SourceError {
        if matches!(error, SourceError::IdentityRejected { .. }) {
            self.clients.renew(place).await;
        }
        error
    }
}

impl SecretSource for AwsSource {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn operation(&self, key: &SecretKey) -> &'static str {
        if key.selector.is_description() { "DescribeSecret" } else { "GetSecretValue" }
    }

    fn fetch<'a>(&'a self, key: &'a SecretKey) -> Fetching<'a> {
        if key.selector.is_description() {
            return Box::pin(self.describe_secret(key));
        }
        Box::pin(self.get_secret_value(key))
    }

    fn max_batch(&self) -> usize {
        batch::MAX_IDS
    }

    fn batch_operation(&self) -> &'static str {
        "BatchGetSecretValue"
    }

    fn fetch_batch<'a>(&'a self, keys: &'a [SecretKey]) -> FetchingBatch<'a> {
        Box::pin(self.batch_get_secret_value(keys))
    }

    fn list_operation(&self) -> &'static str {
        "ListSecrets"
    }

    fn list<'a>(&'a self, tag: &'a Tag, from: Option<String>) -> Listing<'a> {
        Box::pin(self.list_secrets(tag, from))
    }

    fn probe(&self) -> Probing<'_> {
        Box::pin(self.clients.check_credentials())
    }
}

fn version(output: GetSecretValueOutput) -> Result<SecretVersion, SourceError> {
    version_of(
        output.secret_string,
        output.secret_binary,
        (output.arn, output.name, output.version_id),
        output.version_stages,
        output.created_date,
    )
}

/// Moves the value out of an answer, so that no second copy of it is made.
fn version_of(
    text: Option<String>,
    binary: Option<Blob>,
    (arn, name, version_id): (Option<String>, Option<String>, Option<String>),
    version_stages: Option<Vec<String>>,
    created_date: Option<DateTime>,
) -> Result<SecretVersion, SourceError> {
    let value = match (text, binary) {
        (Some(text), _) => SecretValue::text(text),
        (None, Some(binary)) => SecretValue::binary(binary.into_inner()),
        (None, None) => return Err(SourceError::Unusable { reason: "it has no value" }),
    };
    let (Some(arn), Some(name), Some(version_id)) = (arn, name, version_id) else {
        return Err(SourceError::Unusable { reason: "it lacks ARN, Name or VersionId" });
    };
    Ok(SecretVersion {
        arn,
        name,
        version_id: version_id.into(),
        version_stages: version_stages.unwrap_or_default(),
        created_date: created_date.and_then(|date| SystemTime::try_from(date).ok()),
        value,
    })
}
