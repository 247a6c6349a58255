//! The process, in the order in which it starts: build the parts, open the listeners, wait, drain.
//!
//! Every part gets what it needs from here as an argument; there are no globals. `parts` makes them from the
//! configuration, `reload` gives them another one while they run.

mod parts;
mod reload;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use self::reload::{Reloader, SharedRules};
use crate::access::{TOKEN_POLL_INTERVAL, TokenError, User};
use crate::audit::AuditError;
use crate::cache::{self, Cache};
use crate::config::{Bind, Config, Environment, EnvironmentError, ListenerConfig};
use crate::hardening::{Identity, IdentityError};
use crate::lifecycle::{Drain, Readiness, Signals, Supervisor, TaskEnd, Told};
use crate::metrics::Metrics;
use crate::net::{
    self, BindError, ConnectionLimits, ConnectionMetrics, Listener, Ownership, Patience, Service,
    UnknownOwner,
};
use crate::ops::OpsService;
use crate::projection;
use crate::server::{Rules, SecretService, Shared};
use crate::source::file::FileSourceError;

/// What is open besides connections to secret listeners, amply.
const SPARE_DESCRIPTORS: u64 = 256;

/// How long the end waits for an output of the audit trail that does not take its last lines.
const AUDIT_PATIENCE: Duration = Duration::from_secs(1);

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
    /// A projected file would hold what its owner may not read.
    #[error("[[project]] {}: {secret:?} would be written for user {uid}, group {gid}, but {how}", .dir.display())]
    Policy {
        /// The directory.
        dir: PathBuf,
        /// The secret, as configured.
        secret: String,
        /// The owner of the file.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Why not.
        how: &'static str,
    },
    /// A listener's token cannot be had.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The process cannot go on as the user that is configured.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The audit trail cannot be begun.
    #[error(transparent)]
    Audit(#[from] AuditError),
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
        matches!(
            self,
            Self::Environment(_)
                | Self::FileSource(_)
                | Self::Owner(_)
                | Self::Policy { .. }
                | Self::Identity(_)
        )
    }
}

/// Runs the daemon until a signal ends it. `path` is where `config` was read from, and is read again on demand.
pub async fn run(config: Config, path: Option<PathBuf>, environment: &Environment) -> Result<(), AppError> {
    environment.check()?;
    environment.check_upstream(&config)?;
    let identity = config.process.user.as_deref();
    let identity =
        identity.map(|user| Identity::resolve(user, config.process.group.as_deref())).transpose()?;
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    let mut tasks = Supervisor::default();
    // Those that keep values, or have them fetched.
    let mut keepers = Supervisor::default();
    let drain = Drain::new();
    let readiness = Readiness::default();
    let starting = readiness.block("listeners");
    let metrics = Metrics::new();
    metrics.config.loaded();
    let audit = parts::audit(&config, identity.as_ref(), &metrics)?;

    let source = parts::source(&config, environment, &mut tasks)?;
    let resolver = Arc::new(parts::resolver(&config));
    let wanted = parts::wanted(&config, &resolver);
    let region = parts::default_region(&config, environment);
    let own = identity.as_ref().map(|identity| User { uid: identity.uid(), gid: identity.gid() });
    let projects = parts::projects(&config, &resolver, region.as_deref(), own)?;
    let settings = parts::settings(&config, Arc::clone(&resolver), &metrics);
    let cache = Cache::new(source, settings, metrics.clone());
    keepers.spawn("refresher", cache.clone().run());
    let probed = cache.clone();
    tokio::spawn(async move { probed.probe().await });

    let max_waiting = config.server.max_waiting as usize;
    let open = Open { drain: &drain, metrics: &metrics, limits: limits(&config), max_waiting };
    // The ops listener is no part of the drain: it answers until the others are done.
    let ops_drain = Drain::new();
    if let Some(addr) = config.ops.tcp {
        let listener = Listener::tcp(addr).await?;
        let service = OpsService::new(metrics.clone(), readiness.clone(), cache.view(), listener.label());
        Open { drain: &ops_drain, ..open }.serve(listener, service, &mut tasks);
    }
    let shared =
        Arc::new(Shared::new(cache.clone(), resolver, readiness.clone(), region.clone(), audit.clone()));
    let mut rules = Vec::new();
    for listener in &config.listeners {
        let its_rules = parts::rules(&config, listener, region.as_deref(), None)?;
        rules.push(open.secrets(listener, its_rules, &shared, &mut tasks).await?);
    }
    if let Some(identity) = identity {
        go_on_as(&identity, &rules)?;
    }
    tasks.spawn("token watch", watch_tokens(rules.clone()));
    let block = (!wanted.is_empty()).then(|| readiness.block("preload"));
    let (wanting, wanted) = watch::channel(wanted);
    let patience = config.cache.preload_timeout;
    keepers.spawn("preload", cache::preload(cache.clone(), wanted, patience, || drop(block)));
    let block = (!projects.is_empty()).then(|| readiness.block("projection"));
    let (projecting, projects) = watch::channel(projects);
    let projection =
        projection::run(cache.clone(), projects, metrics.projection.clone(), patience, || drop(block));
    keepers.spawn("projection", projection);
    let drain_timeout = config.server.drain_timeout;
    let mut reloader = Reloader::new(
        config,
        path,
        reload::Parts {
            audit: audit.clone(),
            cache: cache.clone(),
            shared,
            rules,
            region,
            wanting,
            projecting,
            metrics,
        },
    );
    drop(starting);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");

    let end = until_told(&mut signals, &mut reloader, [&mut tasks, &mut keepers]).await;
    let Ok(signal) = end else {
        audit.finish(AUDIT_PATIENCE).await;
        return end.map(drop);
    };
    tracing::info!(signal, "ending: finishing requests in flight");
    readiness.start_draining();
    let wipe = || {
        drop(keepers);
        cache.close();
        tracing::info!("the values in memory are wiped");
    };
    tokio::select! {
        finished = finish(drain, drain_timeout, wipe) => {
            if finished.is_err() {
                tracing::warn!("requests in flight did not finish within drain_timeout and are cut off");
            }
        }
        _ = signals.end() => {
            audit.finish(AUDIT_PATIENCE).await;
            return Err(AppError::Interrupted);
        }
    }
    audit.finish(AUDIT_PATIENCE).await;
    tracing::info!("ended");
    Ok(())
}

/// What holds for connections. Says so if the system does not let us have that many.
fn limits(config: &Config) -> ConnectionLimits {
    let server = &config.server;
    let descriptors = net::raise_descriptor_limit();
    let wanted = u64::from(server.max_connections) * config.listeners.len() as u64;
    if descriptors.is_some_and(|limit| limit < wanted + SPARE_DESCRIPTORS) {
        tracing::warn!(
            limit = descriptors,
            "fewer files may be open than server.max_connections needs on all listeners; raise the hard limit"
        );
    }
    ConnectionLimits {
        max_connections: server.max_connections as usize,
        max_per_user: server.max_connections_per_uid as usize,
        idle_timeout: server.idle_timeout,
        patience: Patience { head: server.header_timeout, answer: server.write_timeout },
    }
}

/// Reloads whenever that is asked for, until a signal ends the process, by its name; or until a part has ended that
/// must not.
async fn until_told(
    signals: &mut Signals,
    reloader: &mut Reloader,
    [tasks, keepers]: [&mut Supervisor; 2],
) -> Result<&'static str, AppError> {
    loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::End(signal) => return Ok(signal),
                Told::Reload => reloader.reload().await,
            },
            () = reloader.file_changed() => reloader.reload().await,
            end = tasks.first_end() => return Err(AppError::Task(end)),
            end = keepers.first_end() => return Err(AppError::Task(end)),
        }
    }
}

/// Waits for the requests in flight, for so long at most. What is in memory for others is wiped as soon as no others
/// can come: idle connections are closed after [`net::LINGER`], and what came by them just before is under way.
async fn finish(drain: Drain, at_most: Duration, wipe: impl FnOnce()) -> Result<(), Elapsed> {
    let mut finishing = pin!(timeout(at_most, drain.finish()));
    let finished = timeout(net::LINGER * 2, finishing.as_mut()).await;
    wipe();
    match finished {
        Ok(finished) => finished,
        Err(_) => finishing.await,
    }
}

/// Goes on as another user. Token files that were made just now become that user's, to be reread.
fn go_on_as(identity: &Identity, rules: &[SharedRules]) -> Result<(), AppError> {
    for rules in rules {
        if let Some(token) = &rules.load().gate().token {
            token.hand_over(identity.uid())?;
        }
    }
    identity.assume()?;
    tracing::info!(uid = identity.uid(), gid = identity.gid(), "going on as the user that is configured");
    Ok(())
}

/// Rereads token files when they change.
async fn watch_tokens(rules: Vec<SharedRules>) {
    loop {
        sleep(TOKEN_POLL_INTERVAL).await;
        for rules in &rules {
            if let Some(token) = &rules.load().gate().token {
                token.look();
            }
        }
    }
}

/// Opens listeners.
#[derive(Clone, Copy)]
struct Open<'a> {
    drain: &'a Drain,
    metrics: &'a Metrics,
    limits: ConnectionLimits,
    max_waiting: usize,
}

impl Open<'_> {
    fn serve<S: Service>(&self, listener: Listener, service: S, tasks: &mut Supervisor) {
        tracing::info!(listener = listener.label(), "listening");
        let (open, refused) = self.metrics.http.connections(listener.label());
        let metrics = ConnectionMetrics { open, refused };
        let serving = net::serve(listener, Arc::new(service), self.limits, self.drain.watcher(), metrics);
        tasks.spawn("accept loop", serving);
    }

    async fn secrets(
        &self,
        config: &ListenerConfig,
        rules: Rules,
        shared: &Arc<Shared>,
        tasks: &mut Supervisor,
    ) -> Result<SharedRules, AppError> {
        let listener = match &config.bind {
            Bind::Unix { path, mode, directory_mode, owner, group, .. } => {
                let ownership = Ownership::resolve(*mode, owner.as_deref(), group.as_deref())?;
                Listener::unix(path, ownership, *directory_mode)?
            }
            Bind::Tcp { addr, .. } => Listener::tcp(*addr).await?,
        };
        let rules = Arc::new(ArcSwap::from_pointee(rules));
        let label = listener.label().to_owned();
        let http = self.metrics.http.clone();
        let service =
            SecretService::new(Arc::clone(shared), Arc::clone(&rules), label, http, self.max_waiting);
        self.serve(listener, service, tasks);
        Ok(rules)
    }
}
