//! The process, in the order in which it starts: build the parts, open the listeners, wait, drain.
//!
//! Every part gets what it needs from here as an argument; there are no globals. `parts` makes them from the
//! configuration, `reload` gives them another one while they run, `succession` is from one process to the next.

mod ending;
mod parts;
mod reload;
mod succession;

pub use self::ending::Finish;
pub use self::parts::{aws_source, resolver};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::sleep;

use self::ending::{End, Ending};
use self::reload::{Reloader, SharedRules};
use self::succession::Succession;
use crate::access::{TOKEN_POLL_INTERVAL, TokenError};
use crate::audit::AuditError;
use crate::cache::{self, Cache, CacheView};
use crate::config::{Bind, Config, Environment, EnvironmentError, ListenerConfig};
use crate::hardening::{Identity, IdentityError};
use crate::lifecycle::{
    self, BlockReady, Drain, Readiness, ServiceManager, Signals, Supervisor, TaskEnd, Told,
};
use crate::metrics::Metrics;
use crate::net::{
    self, Address, BindError, ConnectionLimits, ConnectionMetrics, Listener, Ownership, PassedError,
    PassedOn, PassedToProcess, Patience, Service, UnknownOwner,
};
use crate::ops::OpsService;
use crate::projection;
use crate::server::{Rules, SecretService, Shared};
use crate::source::file::FileSourceError;
use crate::takeover::Successor;

/// What is open besides connections to secret listeners, amply.
const SPARE_DESCRIPTORS: u64 = 256;

/// How long a first look at the source may keep a process from taking over.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

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
    /// A socket was passed to the process that it is not configured for.
    #[error(transparent)]
    Passed(#[from] PassedError),
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
                | Self::Passed(_)
                | Self::Policy { .. }
                | Self::Identity(_)
        )
    }
}

/// Runs the daemon until a signal ends it. `path` is where `config` was read from, and is read again on demand. Of the
/// addresses, those of `passed` are open already; what the process before has left is there too.
pub async fn run(
    config: Config,
    path: Option<PathBuf>,
    environment: &Environment,
    passed: PassedToProcess,
) -> Result<Finish, AppError> {
    environment.check()?;
    environment.check_upstream(&config)?;
    passed.sockets.check(&addresses(&config))?;
    let identity = parts::identity(&config)?;
    let mut signals = Signals::install().map_err(AppError::Signals)?;
    let mut tasks = Supervisor::default();
    tasks.spawn("watchdog", lifecycle::watchdog());
    // Those that keep values, or have them fetched.
    let mut keepers = Supervisor::default();
    let drain = Drain::new();
    let readiness = Readiness::default();
    let starting = readiness.block("listeners");
    let metrics = Metrics::new();
    metrics.config.loaded();
    let audit = parts::audit(&config, identity.as_ref(), &metrics)?;

    let source = parts::source(&config, environment, &mut tasks)?;
    let resolver = Arc::new(resolver(&config));
    let wanted = parts::wanted(&config, &resolver);
    let region = parts::default_region(&config, environment);
    let projects = parts::projects(&config, &resolver, region.as_deref(), identity.as_ref())?;
    let settings = parts::settings(&config, Arc::clone(&resolver), &metrics);
    let cache = Cache::new(source, settings, metrics.clone());
    let mut service_manager = ServiceManager::default();
    let mut succession = Succession::begin(&config, environment, region.as_deref(), passed, &cache).await;
    let block_until_taken = succession.is_heir().then(|| readiness.block("takeover"));
    let to_leave = environment.keeps_descriptors().then(|| succession.terms().clone());
    keepers.spawn("refresher", cache.clone().run());
    tokio::spawn(probe(cache.clone(), succession.is_heir().then(|| readiness.block("source"))));

    let max_waiting = config.server.max_waiting as usize;
    let open = Open { drain: &drain, metrics: &metrics, limits: limits(&config), max_waiting };
    // The ops listener is no part of the drain: it answers until the others are done.
    let ops_drain = Drain::new();
    let open_ops = Open { drain: &ops_drain, ..open };
    let ops_passed_on =
        open_ops.ops(config.ops.tcp, &readiness, cache.view(), &mut succession, &mut tasks).await?;
    let shared =
        Arc::new(Shared::new(cache.clone(), resolver, readiness.clone(), region.clone(), audit.clone()));
    let mut rules = Vec::new();
    for listener in &config.listeners {
        let its_rules = parts::rules(&config, listener, region.as_deref(), None)?;
        rules.push(open.secrets(listener, its_rules, &shared, &mut succession, &mut tasks).await?);
    }
    succession.meet()?;
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
    let after_takeover = config.process.after_takeover;
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
    succession.forget(&service_manager).await;
    drop(starting);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");

    let mut succeeded = Box::pin(succession.run(cache.clone(), block_until_taken));
    let end = until_told(
        &mut signals,
        &mut reloader,
        [&mut tasks, &mut keepers],
        &readiness,
        &mut service_manager,
        succeeded.as_mut(),
    )
    .await;
    // Further handles of the sockets: with them, newcomers would wait for nobody.
    drop(succeeded);
    let ending = Ending {
        audit,
        cache,
        keepers,
        readiness,
        service_manager,
        to_leave,
        drain,
        drain_timeout,
        ops_drain,
        ops_passed_on,
        after_takeover,
    };
    ending.run(end, &mut signals).await
}

/// All addresses that are listened on.
fn addresses(config: &Config) -> Vec<Address> {
    config.listeners.iter().map(address).chain(config.ops.tcp.map(Address::Tcp)).collect()
}

fn address(listener: &ListenerConfig) -> Address {
    match &listener.bind {
        Bind::Unix { path, .. } => Address::Unix(path.clone()),
        Bind::Tcp { addr, .. } => Address::Tcp(*addr),
    }
}

/// What holds for connections. Says so if the system does not let us have that many.
fn limits(config: &Config) -> ConnectionLimits {
    let server = &config.server;
    let descriptors = net::raise_descriptor_limit();
    if descriptors.is_some_and(|limit| limit < wanted_descriptors(config)) {
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

/// How many files may have to be open at a time.
pub fn wanted_descriptors(config: &Config) -> u64 {
    u64::from(config.server.max_connections) * config.listeners.len() as u64 + SPARE_DESCRIPTORS
}

/// Reloads whenever that is asked for, until a signal ends the process or another one has taken over; or until a part has
/// ended that must not. Tells the service manager when the process is ready, and when it reloads.
async fn until_told(
    signals: &mut Signals,
    reloader: &mut Reloader,
    [tasks, keepers]: [&mut Supervisor; 2],
    readiness: &Readiness,
    service_manager: &mut ServiceManager,
    mut succeeded: Pin<&mut impl Future<Output = Result<Successor, BindError>>>,
) -> Result<End, AppError> {
    if !readiness.reasons().is_empty() {
        service_manager.preparing().await;
    }
    loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::End(signal) => return Ok(End::Told(signal)),
                Told::Reload => service_manager.during_reload(reloader.reload()).await,
            },
            succeeded = succeeded.as_mut() => return Ok(End::Succeeded(succeeded?)),
            () = reloader.file_changed() => service_manager.during_reload(reloader.reload()).await,
            () = readiness.ready(), if !service_manager.is_started() => service_manager.ready().await,
            end = tasks.first_end() => return Err(AppError::Task(end)),
            end = keepers.first_end() => return Err(AppError::Task(end)),
        }
    }
}

/// Has a first look at the source, which loads what calls to it need. That keeps the only thread busy for a moment: one
/// that takes over from another process is not ready before, and nobody waits for it.
async fn probe(cache: Cache, block: Option<BlockReady>) {
    let mut probing = pin!(cache.probe());
    tokio::select! {
        () = probing.as_mut() => return,
        () = sleep(PROBE_PATIENCE) => drop(block),
    }
    probing.await;
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
    /// Serves from a listener, once that is this process's to do.
    fn serve<S: Service>(
        &self,
        listener: Listener,
        succession: &Succession,
        service: S,
        tasks: &mut Supervisor,
    ) {
        let mut opened = succession.opened(&listener);
        tracing::info!(listener = listener.label(), passed = listener.passed_on().is_set(), "listening");
        let (open, refused) = self.metrics.http.connections(listener.label(), self.limits.max_connections);
        let metrics = ConnectionMetrics { open, refused };
        let mut drain = self.drain.watcher();
        let serving = net::serve(listener, Arc::new(service), self.limits, self.drain.watcher(), metrics);
        tasks.spawn("accept loop", async move {
            tokio::select! {
                _ = opened.wait_for(|is_opened| *is_opened) => {}
                () = drain.started() => {}
            }
            drop(drain);
            serving.await;
        });
    }

    /// The ops listener, if there is to be one. Returns whether another process has it too.
    async fn ops(
        &self,
        addr: Option<SocketAddr>,
        readiness: &Readiness,
        cache: CacheView,
        succession: &mut Succession,
        tasks: &mut Supervisor,
    ) -> Result<PassedOn, AppError> {
        let Some(addr) = addr else { return Ok(PassedOn::default()) };
        let listener = succession.tcp(addr).await?;
        let passed_on = listener.passed_on();
        let service = OpsService::new(self.metrics.clone(), readiness.clone(), cache, listener.label());
        self.serve(listener, succession, service, tasks);
        Ok(passed_on)
    }

    /// A secret listener.
    async fn secrets(
        &self,
        config: &ListenerConfig,
        rules: Rules,
        shared: &Arc<Shared>,
        succession: &mut Succession,
        tasks: &mut Supervisor,
    ) -> Result<SharedRules, AppError> {
        let listener = match &config.bind {
            Bind::Unix { path, mode, directory_mode, owner, group, .. } => {
                let ownership = Ownership::resolve(*mode, owner.as_deref(), group.as_deref())?;
                succession.unix(path, ownership, *directory_mode)?
            }
            Bind::Tcp { addr, .. } => succession.tcp(*addr).await?,
        };
        let rules = Arc::new(ArcSwap::from_pointee(rules));
        let label = listener.label().to_owned();
        let http = self.metrics.http.clone();
        let service =
            SecretService::new(Arc::clone(shared), Arc::clone(&rules), label, http, self.max_waiting);
        self.serve(listener, succession, service, tasks);
        Ok(rules)
    }
}
