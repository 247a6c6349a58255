//! The typed configuration: what the file says, what the environment says, and what is in effect.
//!
//! Everything is checked here, once, with all errors at once; what other modules receive cannot be wrong.
//! No other module reads the environment.

mod effective;
mod environment;
mod listener;
mod load;
mod project;

pub use self::environment::{ClientAddress, Environment, EnvironmentError, config_path};
pub use self::project::{Layout, OnChange, ProjectConfig, ProjectedSecret, signal_name};

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::document::{Complaints, Document, Quoting};
use crate::secret::Unlisted;

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/smcached/smcached.toml";

/// The Unix socket of a daemon that is configured with no listener.
pub const DEFAULT_SOCKET: &str = "/run/smcached/smcached.sock";

/// The token file of TCP listeners that name none.
pub const DEFAULT_TOKEN_FILE: &str = "/run/smcached/token";

/// A whole configuration. See `docs/configuration.md` for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// When the file is read again.
    pub reload: Reload,
    /// `[process]`
    pub process: ProcessConfig,
    /// `[source]`
    pub source: SourceConfig,
    /// `[aws]`
    pub aws: AwsConfig,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[refresh]`
    pub refresh: RefreshConfig,
    /// `[server]`
    pub server: ServerConfig,
    /// `[[listener]]`
    pub listeners: Vec<ListenerConfig>,
    /// `[[policy]]`
    pub policies: Vec<PolicyConfig>,
    /// `[[project]]`
    pub projects: Vec<ProjectConfig>,
    /// `[ops]`
    pub ops: OpsConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[audit]`
    pub audit: AuditConfig,
    /// `[groups.<name>]`
    pub groups: BTreeMap<String, GroupConfig>,
}

/// When the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// On SIGHUP.
    Signal,
    /// And when the file changes.
    Watch,
}

/// As whom the daemon runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessConfig {
    /// The user that it becomes once everything is open: a name or a number.
    pub user: Option<String>,
    /// The group, where it is not the user's own.
    pub group: Option<String>,
    /// A private Unix socket where the next process comes to take over.
    pub takeover: Option<PathBuf>,
    /// What becomes of this process then.
    pub after_takeover: AfterTakeover,
}

/// What becomes of a process that another one has taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AfterTakeover {
    /// It ends.
    #[default]
    Exit,
    /// It waits to be told to end: whoever started it would start it again.
    Wait,
}

/// Where secrets come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// AWS Secrets Manager.
    Aws,
    /// A TOML file of secrets, for laptops and tests.
    File {
        /// The file.
        path: PathBuf,
    },
}

/// How AWS is reached. What is absent is left to the SDK's own chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsConfig {
    /// The region of names without one.
    pub region: Option<String>,
    /// Where all AWS services are, as in the SDKs.
    pub endpoint_url: Option<String>,
    /// Where STS is, if elsewhere.
    pub sts_endpoint_url: Option<String>,
    /// A profile of the shared configuration.
    pub profile: Option<String>,
    /// A role to assume.
    pub role_arn: Option<String>,
    /// The longest that a connection may take to open.
    pub connect_timeout: Duration,
    /// The longest that one attempt may take.
    pub attempt_timeout: Duration,
    /// The most attempts of one call.
    pub max_attempts: u32,
}

/// How long values are kept and used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Fresh for this long.
    pub ttl: Duration,
    /// After `ttl`, served at once for this long while a refresh runs.
    pub stale_while_revalidate: Duration,
    /// After `ttl`, served for this long when AWS fails.
    pub stale_if_error: Duration,
    /// How long a refusal is remembered.
    pub negative_ttl: Duration,
    /// Entries not read for this long are dropped; zero means never.
    pub idle_timeout: Duration,
    /// The longest that a cold read waits.
    pub fetch_timeout: Duration,
    /// The longest that a read of a stale value waits.
    pub revalidate_timeout: Duration,
    /// The bytes that held values may take.
    pub max_bytes: u64,
    /// Secrets that are fetched at start and kept fresh, as `<group>/<key>`.
    pub preload: Vec<String>,
    /// Tags of secrets that are treated likewise, as `<key>=<value>` or `<key>`.
    pub preload_tags: Vec<String>,
    /// How long readiness waits for those.
    pub preload_timeout: Duration,
    /// What becomes of groups that are not configured.
    pub unlisted_groups: Unlisted,
}

/// How AWS is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshConfig {
    /// Whether refreshes may share calls.
    pub batch: Batch,
    /// The most at a time.
    pub max_concurrency: u32,
    /// The most a second.
    pub rate: u32,
    /// The most a second that the reads of one caller may cause.
    pub rate_per_caller: u32,
}

/// Whether refreshes may share calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// Where that is allowed.
    Auto,
    /// Never.
    Off,
}

/// Bounds on connections, of every listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// The most open connections of a listener.
    pub max_connections: u32,
    /// The most of one user on a Unix socket.
    pub max_connections_per_uid: u32,
    /// The most readers of a listener that wait for a change.
    pub max_waiting: u32,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive.
    pub header_timeout: Duration,
    /// How long an answer may take to be read.
    pub write_timeout: Duration,
    /// How long requests in flight may take to finish at the end.
    pub drain_timeout: Duration,
}

/// One secret listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where, and who may connect.
    pub bind: Bind,
    /// Patterns of the secrets that may be read here; empty means all.
    pub allow_secrets: Vec<String>,
    /// Roles that callers may name.
    pub allow_roles: Vec<String>,
}

/// A rule of who may read what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// The label of the listener that it is for; `None` is all, and what the daemon does by itself.
    pub listener: Option<String>,
    /// The users that it is for; `None` is all.
    pub uids: Option<Vec<u32>>,
    /// The primary groups that it is for; `None` is all.
    pub gids: Option<Vec<u32>>,
    /// Patterns of the secrets that may be read.
    pub allow_secrets: Vec<String>,
}

impl ListenerConfig {
    /// How policies and metrics call it: `unix:<path>` or `tcp:<address>`.
    pub fn label(&self) -> String {
        let kind = match self.bind {
            Bind::Unix { .. } => "unix",
            Bind::Tcp { .. } => "tcp",
        };
        format!("{kind}:{}", self.address())
    }

    /// What tells it from others: a path, or an address and port.
    pub fn address(&self) -> String {
        match &self.bind {
            Bind::Unix { path, .. } => path.display().to_string(),
            Bind::Tcp { addr, .. } => addr.to_string(),
        }
    }
}

/// An address to listen on, and what is particular to its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Those of its directory; `None` leaves one that is there as it is.
        directory_mode: Option<u32>,
        /// Its owner, by name or number.
        owner: Option<String>,
        /// Its group, by name or number.
        group: Option<String>,
        /// The user ids that may read; empty means whoever may connect.
        allow_uids: Vec<u32>,
    },
    /// A TCP address.
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// What callers must present.
        token: TokenConfig,
        /// Host names by which callers may address it, besides those of loopback.
        allowed_hosts: Vec<String>,
        /// Said out loud where the address is no loopback one.
        allow_non_loopback: bool,
    },
}

/// What callers of a TCP listener must present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenConfig {
    /// Nothing.
    None,
    /// The content of a file.
    File(PathBuf),
}

/// The ops listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpsConfig {
    /// Its address; `None` turns it off.
    pub tcp: Option<SocketAddr>,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// The least severe events that are logged.
    pub level: LogLevel,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person.
    Text,
}

/// Severity of log events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the field")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// Where it goes.
    pub output: AuditOutput,
    /// A file is moved away before it would grow larger.
    pub max_bytes: u64,
    /// How many files that were moved away are kept.
    pub keep: u32,
    /// The permission bits of a file that is made.
    pub mode: u32,
}

/// Where the audit trail goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditOutput {
    /// There is none.
    Off,
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// A group that callers may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupConfig {
    /// What is put before the key.
    pub prefix: String,
    /// The region of its secrets.
    pub region: Option<String>,
    /// The role to assume for them.
    pub role_arn: Option<String>,
    /// Their ttl, where it differs.
    pub ttl: Option<Duration>,
    /// Regions to which they are replicated, asked in this order when their own fails.
    pub fallback_regions: Vec<String>,
}

impl Config {
    /// Reads a file; without one, the built-in defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, Complaints> {
        let Some(path) = path else { return Ok(Self::default()) };
        let name = path.display().to_string();
        let text = fs::read_to_string(path)
            .map_err(|error| Complaints::about(&name, &format!("cannot be read: {error}")))?;
        Self::parse(&name, &text)
    }

    /// The listener of this configuration that a URL leads to, if it leads to one.
    fn own_address(&self, url: &str) -> Option<SocketAddr> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
        let default_port = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, default_port),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let ip = match host.parse::<IpAddr>() {
            Ok(ip) => ip,
            Err(_) if host.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST.into(),
            Err(_) => return None,
        };
        let is_local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        let listening = self.listeners.iter().filter_map(|listener| match listener.bind {
            Bind::Tcp { addr, .. } => Some(addr),
            Bind::Unix { .. } => None,
        });
        let leads_to = |addr: &SocketAddr| {
            addr.port() == port && (addr.ip() == ip || (is_local(addr.ip()) && is_local(ip)))
        };
        listening.chain(self.ops.tcp).find(leads_to)
    }

    /// Reads a text, which is called `file` in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, Complaints> {
        Document::read(file, text, Quoting::Allowed, load::config)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            reload: Reload::Signal,
            process: ProcessConfig::default(),
            source: SourceConfig::Aws,
            aws: AwsConfig::default(),
            cache: CacheConfig::default(),
            refresh: RefreshConfig { batch: Batch::Auto, max_concurrency: 16, rate: 50, rate_per_caller: 25 },
            server: ServerConfig {
                max_connections: 4096,
                max_connections_per_uid: 4096,
                max_waiting: 3686,
                idle_timeout: Duration::from_mins(1),
                header_timeout: Duration::from_secs(10),
                write_timeout: Duration::from_secs(30),
                drain_timeout: Duration::from_secs(10),
            },
            listeners: vec![
                ListenerConfig {
                    bind: Bind::Unix {
                        path: DEFAULT_SOCKET.into(),
                        mode: 0o660,
                        directory_mode: None,
                        owner: None,
                        group: None,
                        allow_uids: Vec::new(),
                    },
                    allow_secrets: Vec::new(),
                    allow_roles: Vec::new(),
                },
                ListenerConfig {
                    bind: Bind::Tcp {
                        addr: SocketAddr::from(([127, 0, 0, 1], 2773)),
                        token: TokenConfig::File(DEFAULT_TOKEN_FILE.into()),
                        allowed_hosts: Vec::new(),
                        allow_non_loopback: false,
                    },
                    allow_secrets: Vec::new(),
                    allow_roles: Vec::new(),
                },
            ],
            policies: Vec::new(),
            projects: Vec::new(),
            ops: OpsConfig { tcp: Some(SocketAddr::from(([127, 0, 0, 1], 9273))) },
            log: LogConfig { format: LogFormat::Json, level: LogLevel::Info },
            audit: AuditConfig { output: AuditOutput::Off, max_bytes: 100 << 20, keep: 5, mode: 0o600 },
            groups: BTreeMap::new(),
        }
    }
}

impl Default for AwsConfig {
    fn default() -> Self {
        Self {
            region: None,
            endpoint_url: None,
            sts_endpoint_url: None,
            profile: None,
            role_arn: None,
            connect_timeout: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(3),
            max_attempts: 3,
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_mins(5),
            stale_while_revalidate: Duration::from_mins(1),
            stale_if_error: Duration::from_hours(24),
            negative_ttl: Duration::from_secs(10),
            idle_timeout: Duration::from_hours(1),
            fetch_timeout: Duration::from_secs(3),
            revalidate_timeout: Duration::from_millis(250),
            max_bytes: 64 << 20,
            preload: Vec::new(),
            preload_tags: Vec::new(),
            preload_timeout: Duration::from_secs(10),
            unlisted_groups: Unlisted::Allow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_left_out() {
        assert_eq!(Config::parse("empty.toml", "").unwrap(), Config::default());
    }

    #[test]
    fn the_commented_reference_shows_every_key_with_its_default() {
        let text = include_str!("../../config/smcached.toml");
        assert_eq!(Config::parse("smcached.toml", text).unwrap(), Config::default());
        // A line such as `# ttl = "5m"` is a key; prose is a comment that is no TOML.
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("#: ") {
                Some(key) => format!("{key}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let config =
            Config::parse("uncommented.toml", &uncommented).unwrap_or_else(|error| panic!("{error}"));
        let expected = Config { groups: config.groups.clone(), ..Config::default() };
        let settled = |mut config: Config| {
            config.listeners = Config::default().listeners;
            config.policies.clear();
            config.projects.clear();
            config.process = ProcessConfig::default();
            config.aws = AwsConfig::default();
            config.cache.preload.clear();
            config.cache.preload_tags.clear();
            config
        };
        assert_eq!(settled(config), settled(expected));
    }

    #[test]
    fn the_configuration_for_laptops_is_valid() {
        let config = Config::parse("local.toml", include_str!("../../config/local.toml")).unwrap();
        assert_eq!(config.source, SourceConfig::File { path: "config/local-secrets.toml".into() });
    }

    #[test]
    fn the_reference_documents_every_key_and_no_other() {
        let reference = include_str!("../../docs/configuration.md");
        let documented: std::collections::BTreeSet<String> = reference
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(key, _)| key.to_owned())
            .filter(|key| !key.starts_with(|first: char| first.is_uppercase()))
            .collect();
        let example = "[[listener]]\nunix = \"/x\"\n[[listener]]\ntcp = \"127.0.0.1:1\"\n[[policy]]\n[[project]]\nsecrets = [{}]\n\
                       [groups.x]\n";
        let sections = [
            "process", "source", "aws", "cache", "refresh", "server", "listener", "policy", "project", "ops",
            "log", "audit", "groups",
        ];
        let known: std::collections::BTreeSet<String> = Document::known_keys(example, load::config)
            .into_iter()
            .filter(|key| !sections.contains(&key.as_str()))
            .map(|key| key.replace("[]", ""))
            .collect();
        assert_eq!(documented, known);
    }
}
