//! Another configuration for the daemon while it runs: groups, lifetimes, limits, preloading, and who may come in.
//! Nothing that is held is lost and no connection is closed. What else has changed needs a restart, and is said.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::{AppError, parts};
use crate::access::TokenError;
use crate::audit::Audit;
use crate::cache::{Cache, Wanted};
use crate::config::{Bind, Config, ListenerConfig, Reload};
use crate::file_watch::FileWatch;
use crate::metrics::Metrics;
use crate::projection::Project;
use crate::server::{Rules, Shared};

/// How often the file is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A listener's rules, which may be replaced.
pub(super) type SharedRules = Arc<ArcSwap<Rules>>;

/// What takes another configuration.
pub(super) struct Parts {
    pub(super) audit: Audit,
    pub(super) cache: Cache,
    pub(super) shared: Arc<Shared>,
    /// Of each listener, in the order of the configuration.
    pub(super) rules: Vec<SharedRules>,
    /// The daemon's own region.
    pub(super) region: Option<String>,
    pub(super) wanting: watch::Sender<Wanted>,
    pub(super) projecting: watch::Sender<Vec<Project>>,
    pub(super) metrics: Metrics,
}

/// Reads the configuration again and puts it into effect.
pub(super) struct Reloader {
    path: Option<PathBuf>,
    /// What the process was started with: what a reload does not change is as it says.
    started_with: Config,
    watch: Option<FileWatch>,
    parts: Parts,
}

impl Reloader {
    pub(super) fn new(config: Config, path: Option<PathBuf>, parts: Parts) -> Self {
        let mut reloader = Self { watch: None, path, started_with: config, parts };
        reloader.set_watch(reloader.started_with.reload);
        reloader
    }

    fn set_watch(&mut self, reload: Reload) {
        let path = self.path.as_deref().filter(|_| reload == Reload::Watch);
        match path {
            Some(path) if self.watch.is_none() => self.watch = Some(FileWatch::new(path)),
            Some(_) => {}
            None => self.watch = None,
        }
    }

    /// Waits until the file has changed; for ever if it is not to be watched.
    pub(super) async fn file_changed(&mut self) {
        match &mut self.watch {
            Some(watch) => watch.changed(POLL_INTERVAL).await,
            None => std::future::pending().await,
        }
    }

    /// Reads the file. If it is right it takes effect, else it is said what is wrong, and nothing changes, and this is false.
    pub(super) async fn reload(&mut self) -> bool {
        // Whatever becomes of the configuration: the file of the audit trail may have been moved away.
        self.parts.audit.reopen();
        let Some(path) = self.path.clone() else {
            tracing::warn!("there is no configuration file to reload; the built-in defaults stay");
            return true;
        };
        let loading = spawn_blocking(move || Config::load(Some(&path)).map_err(|errors| errors.to_string()));
        let applied = match loading.await {
            Ok(Ok(config)) => self.apply(&config).map_err(|error| error.to_string()),
            Ok(Err(errors)) => Err(errors),
            Err(_) => Err("reading it panicked; this is a defect of smcached".to_owned()),
        };
        match applied {
            Ok(()) => {
                self.parts.metrics.config.reloaded();
                tracing::info!("the configuration was reloaded");
                true
            }
            Err(error) => {
                self.parts.metrics.config.reload_failed();
                tracing::error!(error, "the configuration cannot be reloaded; the old one stays in effect");
                false
            }
        }
    }

    fn apply(&mut self, config: &Config) -> Result<(), AppError> {
        // Whatever may fail comes first.
        let rules = self.rules(config)?;
        let resolver = Arc::new(parts::resolver(config));
        let projects = parts::projects(config, &resolver, self.parts.region.as_deref(), None)?;
        for (place, rules) in rules {
            place.store(Arc::new(rules));
        }
        let settings = parts::settings(config, Arc::clone(&resolver), &self.parts.metrics);
        self.parts.cache.reconfigure(settings);
        send_if_other(&self.parts.wanting, parts::wanted(config, &resolver));
        send_if_other(&self.parts.projecting, projects);
        self.parts.shared.set_resolver(resolver);
        self.set_watch(config.reload);
        let fixed = changed_but_fixed(&self.started_with, config);
        if !fixed.is_empty() {
            let keys = fixed.join(", ");
            tracing::warn!(keys, "these have changed, and take effect with the next start");
        }
        Ok(())
    }

    /// The new rules of the listeners that are open.
    fn rules(&self, config: &Config) -> Result<Vec<(SharedRules, Rules)>, TokenError> {
        let mut changed = Vec::new();
        for (running, place) in self.started_with.listeners.iter().zip(&self.parts.rules) {
            if let Some(listener) =
                config.listeners.iter().find(|listener| listener.address() == running.address())
            {
                let known = place.load();
                let rules = parts::rules(
                    config,
                    listener,
                    self.parts.region.as_deref(),
                    known.gate().token.as_ref(),
                )?;
                changed.push((Arc::clone(place), rules));
            }
        }
        Ok(changed)
    }
}

fn send_if_other<T: PartialEq>(to: &watch::Sender<T>, wanted: T) {
    to.send_if_modified(|current| {
        let is_other = *current != wanted;
        *current = wanted;
        is_other
    });
}

/// What differs and is only looked at when the process starts.
fn changed_but_fixed(before: &Config, after: &Config) -> Vec<String> {
    // The part of each section that takes effect at once is made the same.
    let mut aws = after.aws.clone();
    aws.max_attempts = before.aws.max_attempts;
    let mut fixed = Vec::new();
    let mut note = |differs: bool, what: &str| {
        if differs {
            fixed.push(what.to_owned());
        }
    };
    note(before.process != after.process, "[process]");
    note(before.source != after.source, "[source]");
    note(before.aws != aws, "[aws]");
    note(before.cache.max_bytes != after.cache.max_bytes, "cache.max_bytes");
    note(before.cache.preload_timeout != after.cache.preload_timeout, "cache.preload_timeout");
    note(before.server != after.server, "[server]");
    note(before.ops != after.ops, "[ops]");
    note(before.log != after.log, "[log]");
    note(before.audit != after.audit, "[audit]");
    let opened = |config: &Config| config.listeners.iter().map(opened_as).collect::<Vec<_>>();
    let (was_open, is_wanted) = (opened(before), opened(after));
    for listener in was_open.iter().filter(|listener| !is_wanted.contains(listener)) {
        note(true, &format!("[[listener]] {} (goes on as it is)", listener.0));
    }
    for listener in is_wanted.iter().filter(|listener| !was_open.contains(listener)) {
        note(true, &format!("[[listener]] {} (is not opened so)", listener.0));
    }
    fixed
}

/// A listener's address, and what else counts when it is opened.
fn opened_as(listener: &ListenerConfig) -> (String, String) {
    let how = match &listener.bind {
        Bind::Unix { mode, directory_mode, owner, group, .. } => {
            format!("{mode:o} {directory_mode:?} {owner:?} {group:?}")
        }
        Bind::Tcp { .. } => String::new(),
    };
    (listener.address(), how)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse("t.toml", text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_needs_a_restart_is_named_and_nothing_else() {
        let before = config("");
        let at_once = "reload = \"watch\"\n[aws]\nmax_attempts = 2\n[cache]\nttl = \"1s\"\npreload = [\"a/b\"]\n\
                       [refresh]\nrate = 1\n[groups.x]\nttl = \"1s\"";
        assert_eq!(changed_but_fixed(&before, &config(at_once)), Vec::<String>::new());
        let later = "[process]\nuser = \"root\"\n[aws]\nregion = \"us-west-2\"\n[cache]\nmax_bytes = \"1MiB\"\n[server]\nmax_connections = 1\n\
                     [log]\nlevel = \"warn\"\n[ops]\ntcp = \"off\"\n[audit]\noutput = \"stdout\"";
        let expected = ["[process]", "[aws]", "cache.max_bytes", "[server]", "[ops]", "[log]", "[audit]"];
        assert_eq!(changed_but_fixed(&before, &config(later)), expected);
    }

    #[test]
    fn of_a_listener_the_rules_change_at_once_and_the_socket_does_not() {
        let unix = |lines: &str| config(&format!("[[listener]]\nunix = \"/x\"\n{lines}"));
        let before = unix("");
        let rules = unix("allow_uids = [1]\nallow_secrets = [\"a/*\"]");
        assert_eq!(changed_but_fixed(&before, &rules), Vec::<String>::new());
        let fixed = changed_but_fixed(&before, &unix("mode = \"0600\"")).join(" ");
        assert!(fixed.contains("/x (goes on as it is)"), "{fixed}");
        let other = config("[[listener]]\nunix = \"/y\"");
        assert_eq!(changed_but_fixed(&before, &other).len(), 2);
    }
}
