//! One SDK client per region and role: made on first use, shared, and made anew when AWS rejects the
//! credentials, since the SDK does not drop cached ones by itself.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::SdkConfig;
use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::{AppName, Builder, Region, RuntimeComponents, SharedHttpClient};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::AwsOptions;
use super::classify::no_identity;
use super::clock::Clock;
use super::credentials::{Files, Keeping, RENEWED_BEFORE};
use crate::secret::SecretKey;
use crate::source::SourceError;

/// A client, or the failure to make one, is not made anew before this time has passed.
pub(super) const MIN_RENEWAL: Duration = Duration::from_secs(5);

/// How long a connection is kept that nobody uses. Its buffers hold the last answer: they must not outlive the value.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

const NO_REGION: &str = "no AWS region is known for this name: set [aws] region, the group's region or AWS_REGION, \
     or ask by ARN, which names its region";

/// A region and a role; `None` is the daemon's default.
pub(super) type Place = (Option<String>, Option<String>);

/// The clients of all regions and roles.
pub(super) struct Clients {
    options: AwsOptions,
    http: Result<SharedHttpClient, SourceError>,
    /// In place of the SDK's own chain; for tests.
    credentials: Option<SharedCredentialsProvider>,
    credential_files: Files,
    clock: Clock,
    places: StdMutex<HashMap<Place, Arc<Mutex<Made>>>>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// The latest attempt to make a client.
#[derive(Default)]
struct Made {
    outcome: Option<Result<Client, SourceError>>,
    at: Option<Instant>,
}

impl Made {
    /// Whether it is too early for another attempt.
    fn is_recent(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() < MIN_RENEWAL)
    }
}

impl Clients {
    pub(super) fn new(options: AwsOptions) -> Self {
        let http = trust(options.ca_bundle.clone()).map(http_client);
        let credential_files = Files::new(&options.credential_files);
        let (clock, places) = (Clock::default(), StdMutex::default());
        Self { options, http, credentials: None, credential_files, clock, places }
    }

    /// With parts that a test brings.
    #[cfg(test)]
    pub(super) fn with(
        options: AwsOptions,
        http: SharedHttpClient,
        credentials: SharedCredentialsProvider,
    ) -> Self {
        Self { http: Ok(http), credentials: Some(credentials), ..Self::new(options) }
    }

    /// The client of a region and role. Many who ask at once wait for one to be made.
    pub(super) async fn client_at(&self, place: &Place) -> Result<Client, SourceError> {
        if self.credential_files.have_changed() {
            tracing::info!("a file with AWS credentials has changed; they are loaded anew");
            self.places.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let made = self.made(place);
        let mut made = made.lock().await;
        let too_early = made.is_recent();
        match &made.outcome {
            Some(Ok(client)) => Ok(client.clone()),
            Some(Err(error)) if too_early => Err(error.clone()),
            _ => {
                let outcome = self.make(place).await;
                *made = Made { outcome: Some(outcome.clone()), at: Some(Instant::now()) };
                outcome
            }
        }
    }

    /// Forgets a client whose credentials were rejected, so that the next call loads them anew; at most
    /// once per [`MIN_RENEWAL`].
    pub(super) async fn renew(&self, place: &Place) {
        let made = self.made(place);
        let mut made = made.lock().await;
        if !made.is_recent() {
            made.outcome = None;
        }
    }

    /// Whether the daemon has credentials at all; asks no AWS service but those that give them.
    pub(super) async fn check_credentials(&self) -> Result<(), SourceError> {
        let base = self.base(self.options.region.clone()).await?;
        let Some(provider) = base.credentials_provider() else { return Ok(()) };
        match timeout(self.options.identity_timeout, provider.provide_credentials()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(no_identity(&error)),
            Err(_) => Err(no_identity(&CredentialsError::provider_timed_out(self.options.identity_timeout))),
        }
    }

    /// By how many seconds this host's clock was ahead of AWS's when it last answered.
    pub(super) fn clock_ahead(&self) -> Option<i64> {
        self.clock.ahead()
    }

    /// The daemon's own region and role.
    pub(super) fn default_place(&self) -> Place {
        (self.options.region.clone(), self.options.role_arn.clone())
    }

    /// A key's region and role.
    pub(super) fn place(&self, key: &SecretKey) -> Place {
        let region = key.region().or(self.options.region.as_deref()).map(str::to_owned);
        let role = key.origin.role_arn.as_deref().or(self.options.role_arn.as_deref()).map(str::to_owned);
        (region, role)
    }

    fn made(&self, place: &Place) -> Arc<Mutex<Made>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(place.clone()).or_default())
    }

    async fn make(&self, (region, role): &Place) -> Result<Client, SourceError> {
        let base = self.base(region.clone()).await?;
        let Some(region) = base.region().cloned() else {
            return Err(SourceError::NoIdentity { advice: NO_REGION.to_owned() });
        };
        tracing::info!(region = %region, role = role.as_deref(), "using Secrets Manager");
        // One attempt a call: the cache counts, spaces and repeats them, and knows who waits.
        let mut config = Builder::from(&base).retry_config(RetryConfig::disabled());
        config = config.interceptor(self.clock.clone());
        if let Some(role) = role {
            let mut sts = base.to_builder();
            if let Some(url) = &self.options.sts_endpoint_url {
                sts.set_endpoint_url(Some(url.clone()));
            }
            let provider = AssumeRoleProvider::builder(role.as_str())
                .session_name(env!("CARGO_PKG_NAME"))
                .region(region)
                .configure(&sts.build())
                .build()
                .await;
            config = config.credentials_provider(keeping(SharedCredentialsProvider::new(provider)));
        }
        Ok(Client::from_conf(config.build()))
    }

    /// What all clients of a region have in common.
    async fn base(&self, region: Option<String>) -> Result<SdkConfig, SourceError> {
        let options = &self.options;
        // Without these the SDK waits for ever for an endpoint that accepts and never answers.
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(options.connect_timeout)
            .read_timeout(options.attempt_timeout)
            .operation_attempt_timeout(options.attempt_timeout)
            .operation_timeout(options.operation_timeout)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .timeout_config(timeouts)
            // For what gives credentials: somebody may be waiting, so the pauses are short.
            .retry_config(RetryConfig::standard().with_initial_backoff(Duration::from_millis(200)));
        if let Ok(name) = AppName::new(env!("CARGO_PKG_NAME")) {
            loader = loader.app_name(name);
        }
        loader = loader.http_client(self.http.clone()?);
        if let Some(credentials) = self.credentials.clone() {
            loader = loader.credentials_provider(credentials);
        }
        if let Some(profile) = &options.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(url) = &options.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        let identities =
            IdentityCache::lazy().load_timeout(options.identity_timeout).buffer_time(RENEWED_BEFORE).build();
        let loading = timeout(options.identity_timeout, loader.identity_cache(identities).load());
        let base = loading.await.map_err(|_| SourceError::NoIdentity { advice: NO_REGION.to_owned() })?;
        let provider = base.credentials_provider().map(keeping);
        let mut base = base.into_builder();
        base.set_credentials_provider(provider);
        Ok(base.build())
    }
}

fn keeping(provider: SharedCredentialsProvider) -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Keeping::new(provider))
}

/// Which certificates are trusted: those of `AWS_CA_BUNDLE`, which the SDK ignores, else the system's.
fn trust(ca_bundle: Option<Vec<u8>>) -> Result<TlsContext, SourceError> {
    let Some(ca_bundle) = ca_bundle else { return Ok(TlsContext::default()) };
    let trust = TrustStore::empty().with_pem_certificate(ca_bundle);
    TlsContext::builder().with_trust_store(trust).build().map_err(|_| SourceError::NoIdentity {
        advice: "AWS_CA_BUNDLE holds no usable certificates; it must name a file in PEM form".to_owned(),
    })
}

/// The SDK's own HTTP client, proxies of the environment included, which keeps idle connections for a moment only.
fn http_client(tls: TlsContext) -> SharedHttpClient {
    // Not documented, but what the SDK itself makes its client with; nothing that is lets us say all of this.
    aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls.clone())
            .proxy_config(ProxyConfig::from_env())
            .pool_idle_timeout(IDLE_TIMEOUT);
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    })
}
