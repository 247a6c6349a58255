//! AWS Secrets Manager. The only module that knows the AWS SDK.
//!
//! One call, `GetSecretValue`, is all that is needed: it is all that the usual policy grants. `clients`
//! makes and renews an SDK client per region and role; `classify` says what an error means.

mod classify;
mod clients;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use aws_sdk_secretsmanager::config::Config;
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;

use self::classify::classify;
use self::clients::{Clients, retries};
use super::{Fetching, Probing, SecretSource, SourceError, Urgency};
use crate::secret::{SecretKey, SecretValue, SecretVersion};

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
    /// The longest that a call may take, retries included.
    pub operation_timeout: Duration,
    /// The longest that the SDK's chain may look for a region, or for credentials: less than a reader
    /// waits, so that the reader is told what is missing.
    pub identity_timeout: Duration,
    /// The most attempts of a call that a reader waits for.
    pub max_attempts: u32,
    /// Certificates to trust instead of the system's, in PEM form.
    pub ca_bundle: Option<Vec<u8>>,
}

/// A refresh tries no more often than this: the refresher itself is the retry.
const MAX_REFRESH_ATTEMPTS: u32 = 2;

/// Secrets Manager in every region and role that is asked for.
#[derive(Debug)]
pub struct AwsSource {
    clients: Clients,
    max_attempts: u32,
}

impl AwsSource {
    /// Does nothing yet: clients are made on first use.
    pub fn new(options: AwsOptions) -> Self {
        Self { max_attempts: options.max_attempts, clients: Clients::new(options) }
    }

    async fn get_secret_value(
        &self,
        key: &SecretKey,
        urgency: Urgency,
    ) -> Result<SecretVersion, SourceError> {
        let client = self.clients.client(key).await?;
        let attempts = match urgency {
            Urgency::Cold => self.max_attempts,
            Urgency::Refresh => self.max_attempts.min(MAX_REFRESH_ATTEMPTS),
        };
        let answer = client
            .get_secret_value()
            .secret_id(key.id.as_str())
            .set_version_id(key.selector.id().map(str::to_owned))
            .set_version_stage(key.selector.stage().map(str::to_owned))
            .customize()
            .config_override(Config::builder().retry_config(retries(attempts)))
            .send()
            .await;
        match answer.map_err(|error| classify(&error)) {
            Ok(output) => version(output),
            Err(error) => {
                if matches!(error, SourceError::IdentityRejected { .. }) {
                    self.clients.renew(key).await;
                }
                Err(error)
            }
        }
    }
}

impl SecretSource for AwsSource {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn operation(&self) -> &'static str {
        "GetSecretValue"
    }

    fn fetch<'a>(&'a self, key: &'a SecretKey, urgency: Urgency) -> Fetching<'a> {
        Box::pin(self.get_secret_value(key, urgency))
    }

    fn probe(&self) -> Probing<'_> {
        Box::pin(self.clients.check_credentials())
    }
}

/// Moves the value out of the answer, so that no second copy of it is made.
fn version(output: GetSecretValueOutput) -> Result<SecretVersion, SourceError> {
    let value = match (output.secret_string, output.secret_binary) {
        (Some(text), _) => SecretValue::text(text),
        (None, Some(binary)) => SecretValue::binary(binary.into_inner()),
        (None, None) => return Err(SourceError::Unusable { reason: "it has no value" }),
    };
    let (Some(arn), Some(name), Some(version_id)) = (output.arn, output.name, output.version_id) else {
        return Err(SourceError::Unusable { reason: "it lacks ARN, Name or VersionId" });
    };
    Ok(SecretVersion {
        arn,
        name,
        version_id,
        version_stages: output.version_stages.unwrap_or_default(),
        created_date: output.created_date.and_then(|date| SystemTime::try_from(date).ok()),
        value,
    })
}
