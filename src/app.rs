//! The process, in the order in which it starts: build the parts, open the listeners, wait, drain.
//!
//! Every part gets what it needs from here as an argument; there are no globals.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

use crate::access::{Gate, Patterns, TokenError, TokenFile};
use crate::cache::{self, Cache, CacheOptions, CallOptions, Lifetimes, Policies, Settings};
use crate::config::{
    Batch, Bind, Config, Environment, EnvironmentError, ListenerConfig, SourceConfig, TokenConfig,
};
use crate::lifecycle::{Drain, Readiness, Signals, Supervisor, TaskEnd};
use crate::metrics::Metrics;
use crate::net::{self, BindError, ConnectionLimits, Listener, Ownership, Service, UnknownOwner};
use crate::ops::OpsService;
use crate::secret::{Group, Origin, Resolver, SecretKey, SecretPath, VersionSelector};
use crate::server::{SecretService, Shared};
use crate::source::SecretSource;
use crate::source::aws::{AwsOptions, AwsSource};
use crate::source::file::{FileSource, FileSourceError};

/// The longest that the AWS SDK may look for an identity, whatever `fetch_timeout` is: its own default.
const MAX_IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the process ends otherwise than as told.
#[derive(Debug, Error)]
pub enum AppError {
    /// The environment asks for something that must not be.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The file of secrets is missing or broken.
    #[error(transparent)]
    FileSource(#[from] FileSourceError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket's owner or group does not exist.
    #[error(transparent)]
    Owner(#[from] UnknownOwner),
    /// A listener's token cannot be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The system does not let us catch signals.
    #[error("cannot catch signals: {0}")]
    Signals(std::io::Error),
    /// A part that must run has ended.
    #[error("the {name} {how}; this is a defect of smcached", name = .0.name, how = if .0.panicked { "panicked" } else { "ended" })]
    Task(TaskEnd),
    /// A second signal came before the end was done.
    #[error("ended at once by a second signal")]
    Interrupted,
}

impl AppError {
    /// Whether the mend is in the configuration.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Environment(_) | Self::FileSource(_) | Self::Owner(_))
    }
}

/// Runs the daemon until a signal ends it.
pub async fn run(config: Config, environment: &Environment) -> Result<(), AppError> {
    environment.check()?;
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    let mut tasks = Supervisor::default();
    let drain = Drain::new();
    let readiness = Readiness::default();
    let starting = readiness.block("listeners");
    let metrics = Metrics::new();

    let source = source(&config, environment, &mut tasks)?;
    let resolver = Arc::new(resolver(&config));
    let preload: Vec<SecretKey> = preload_keys(&config, &resolver);
    let settings = settings(&config, Arc::clone(&resolver), &metrics);
    let cache = Cache::new(source, settings, metrics.clone());
    cache.pin(preload.iter().cloned().collect());
    tasks.spawn("refresher", cache.clone().run());
    let probed = cache.clone();
    tokio::spawn(async move { probed.probe().await });

    let limits = ConnectionLimits {
        max_connections: config.server.max_connections as usize,
        idle_timeout: config.server.idle_timeout,
    };
    let open = Open { drain: &drain, metrics: &metrics, limits };
    // The ops listener is no part of the drain: it answers until the others are done.
    let ops_drain = Drain::new();
    if let Some(addr) = config.ops.tcp {
        let listener = Listener::tcp(addr).await?;
        let service = OpsService::new(metrics.clone(), readiness.clone(), cache.view(), listener.label());
        Open { drain: &ops_drain, ..open }.serve(listener, service, &mut tasks);
    }
    let shared = Arc::new(Shared::new(cache.clone(), resolver, readiness.clone()));
    for listener in &config.listeners {
        open.secrets(listener, &shared, &mut tasks).await?;
    }
    if !preload.is_empty() {
        let block = readiness.block("preload");
        tasks.spawn("preload", cache::preload(cache, preload, config.cache.preload_timeout, || drop(block)));
    }
    drop(starting);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");

    tokio::select! {
        signal = signals.next() => tracing::info!(signal, "ending: finishing requests in flight"),
        end = tasks.first_end() => return Err(AppError::Task(end)),
    }
    readiness.start_draining();
    tokio::select! {
        finished = timeout(config.server.drain_timeout, drain.finish()) => {
            if finished.is_err() {
                tracing::warn!("requests in flight did not finish within drain_timeout and are cut off");
            }
        }
        _ = signals.next() => return Err(AppError::Interrupted),
    }
    tracing::info!("ended");
    Ok(())
}

/// Opens listeners.
#[derive(Clone, Copy)]
struct Open<'a> {
    drain: &'a Drain,
    metrics: &'a Metrics,
    limits: ConnectionLimits,
}

impl Open<'_> {
    fn serve<S: Service>(&self, listener: Listener, service: S, tasks: &mut Supervisor) {
        tracing::info!(listener = listener.label(), "listening");
        let gauge = self.metrics.http.connections(listener.label());
        let serving = net::serve(listener, Arc::new(service), self.limits, self.drain.watcher(), gauge);
        tasks.spawn("accept loop", serving);
    }

    async fn secrets(
        &self,
        config: &ListenerConfig,
        shared: &Arc<Shared>,
        tasks: &mut Supervisor,
    ) -> Result<(), AppError> {
        let allow_secrets = (!config.allow_secrets.is_empty()).then(|| Patterns::new(&config.allow_secrets));
        let (listener, gate, allowed_hosts) = match &config.bind {
            Bind::Unix { path, mode, owner, group, allow_uids } => {
                let ownership = Ownership::resolve(*mode, owner.as_deref(), group.as_deref())?;
                let gate = Gate { token: None, allow_uids: allow_uids.clone(), allow_secrets };
                (Listener::unix(path, ownership)?, gate, None)
            }
            Bind::Tcp { addr, token, allowed_hosts, .. } => {
                let listener = Listener::tcp(*addr).await?;
                let token = match token {
                    TokenConfig::None => None,
                    TokenConfig::File(path) => Some(Arc::new(TokenFile::open(path)?)),
                };
                if let Some(token) = &token {
                    tasks.spawn("token watch", Arc::clone(token).watch());
                }
                let gate = Gate { token, allow_uids: Vec::new(), allow_secrets };
                (listener, gate, Some(allowed_hosts.clone()))
            }
        };
        let label = listener.label().to_owned();
        let http = self.metrics.http.clone();
        let service = SecretService::new(Arc::clone(shared), gate, allowed_hosts, label, http);
        self.serve(listener, service, tasks);
        Ok(())
    }
}

fn source(
    config: &Config,
    environment: &Environment,
    tasks: &mut Supervisor,
) -> Result<Arc<dyn SecretSource>, AppError> {
    match &config.source {
        SourceConfig::File { path } => {
            let source = Arc::new(FileSource::open(path)?);
            let watched = Arc::clone(&source);
            tasks.spawn("file source", async move { watched.run().await });
            Ok(source)
        }
        SourceConfig::Aws => {
            let aws = config.aws.clone();
            let options = AwsOptions {
                region: aws.region,
                endpoint_url: aws.endpoint_url,
                sts_endpoint_url: aws.sts_endpoint_url,
                profile: aws.profile,
                role_arn: aws.role_arn,
                connect_timeout: aws.connect_timeout,
                attempt_timeout: aws.attempt_timeout,
                operation_timeout: call_options(config).call_timeout(),
                identity_timeout: config.cache.fetch_timeout.mul_f64(0.7).min(MAX_IDENTITY_TIMEOUT),
                ca_bundle: environment.ca_bundle()?,
            };
            Ok(Arc::new(AwsSource::new(options)))
        }
    }
}

fn resolver(config: &Config) -> Resolver {
    let groups = config.groups.iter().map(|(name, group)| Group {
        name: name.as_str().into(),
        prefix: group.prefix.clone(),
        origin: Origin {
            region: group.region.as_deref().map(Into::into),
            role_arn: group.role_arn.as_deref().map(Into::into),
        },
        ttl: group.ttl,
        fallback_regions: group.fallback_regions.iter().map(|region| region.as_str().into()).collect(),
    });
    Resolver::new(groups, config.cache.unlisted_groups)
}

/// What is listed under `preload`. The configuration has checked the form; what the groups make of it may
/// still be refused, and is said.
fn preload_keys(config: &Config, resolver: &Resolver) -> Vec<SecretKey> {
    let resolve = |raw: &String| {
        let path = SecretPath::parse(raw)?;
        resolver.resolve(path, VersionSelector::current())
    };
    let keys = config.cache.preload.iter().filter_map(|raw| {
        resolve(raw).inspect_err(|error| tracing::warn!(secret = raw, %error, "cannot be preloaded")).ok()
    });
    keys.collect()
}

fn cache_options(config: &Config) -> CacheOptions {
    let cache = &config.cache;
    CacheOptions {
        lifetimes: Lifetimes {
            ttl: cache.ttl,
            stale_while_revalidate: cache.stale_while_revalidate,
            stale_if_error: cache.stale_if_error,
        },
        negative_ttl: cache.negative_ttl,
        idle_timeout: cache.idle_timeout,
        fetch_timeout: cache.fetch_timeout,
        revalidate_timeout: cache.revalidate_timeout,
        max_bytes: cache.max_bytes,
    }
}

fn call_options(config: &Config) -> CallOptions {
    CallOptions {
        fetch_timeout: config.cache.fetch_timeout,
        max_attempts: config.aws.max_attempts,
        max_concurrency: config.refresh.max_concurrency,
        rate: config.refresh.rate,
        batch: config.refresh.batch == Batch::Auto,
    }
}

fn settings(config: &Config, resolver: Arc<Resolver>, metrics: &Metrics) -> Settings {
    let options = cache_options(config);
    let policies = Policies::new(resolver, options.lifetimes, &metrics.cache);
    Settings { options, calls: call_options(config), policies }
}
