//! From the process before to this one, and from this one to the next: whose sockets are served, and from when on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use crate::cache::Cache;
use crate::config::{Config, Environment, SourceConfig};
use crate::hardening;
use crate::lifecycle::{BlockReady, ServiceManager};
use crate::net::{
    self, Address, BindError, Listener, Ownership, Passed, PassedOn, PassedSockets, PassedToProcess,
};
use crate::takeover::{self, Estate, Inheritance, Successor, Terms};

/// What comes from the process before, and goes to the next.
#[derive(Debug)]
pub(super) struct Succession {
    /// Where processes meet; `None` where none takes over from another.
    at: Option<PathBuf>,
    terms: Terms,
    /// What the service manager has opened. That is served, whatever the process before has: and is not passed on, as the
    /// service manager does that.
    sockets: PassedSockets,
    inheritance: Option<Inheritance>,
    /// Whether the process before has left something with the service manager.
    was_left: bool,
    /// Labels of the listeners that the process before has left.
    taken: Vec<String>,
    /// Of all that are open, for the next.
    to_pass: Vec<(Passed, PassedOn)>,
    /// Where the next one comes.
    meeting: Option<Listener>,
    /// Opens the listeners of the process before: it serves them until this one is ready.
    opening: watch::Sender<bool>,
}

impl Succession {
    /// Asks the process before for what it has. If there is none any more, it may have left what it held. That is held in
    /// `cache` from now on, as far as it is of use.
    pub(super) async fn begin(
        config: &Config,
        environment: &Environment,
        region: Option<&str>,
        passed: PassedToProcess,
        cache: &Cache,
    ) -> Self {
        let PassedToProcess { sockets, stored } = passed;
        let was_left = stored.is_some();
        let terms = Terms { uid: hardening::own_uid(), source: source(config, environment, region) };
        let at = config.process.takeover.clone();
        let mut inheritance = match &at {
            Some(path) => Inheritance::claim(path, &terms).await,
            None => None,
        };
        let held = match &mut inheritance {
            Some(inheritance) => inheritance.held(),
            None => stored.and_then(|file| takeover::restored(file, &terms)),
        };
        if let Some(held) = held {
            held.give(|entry| cache.take(entry));
        }
        Self {
            at,
            terms,
            sockets,
            inheritance,
            was_left,
            taken: Vec::new(),
            to_pass: Vec::new(),
            meeting: None,
            opening: watch::Sender::new(false),
        }
    }

    /// Whether there is a process to take over from.
    pub(super) fn is_heir(&self) -> bool {
        self.inheritance.is_some()
    }

    /// The process has come so far that the service manager need not keep what it holds: should it fail before, the next one
    /// finds that again.
    pub(super) async fn forget(&self, service_manager: &ServiceManager) {
        if self.was_left {
            service_manager.forget(net::STORED).await;
        }
    }

    /// What a next process must have in common with this one.
    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The listener on a TCP address: of the service manager, of the process before, or a new one.
    pub(super) async fn tcp(&mut self, addr: SocketAddr) -> Result<Listener, BindError> {
        let address = Address::Tcp(addr);
        if let Some(socket) = self.sockets.take(&address) {
            return Listener::passed(socket, address);
        }
        let passed = self.passed(&address, |passed| Listener::passed_tcp(addr, passed));
        match passed {
            Some(listener) => Ok(listener),
            None => Listener::tcp(addr).await.and_then(|listener| self.note(listener)),
        }
    }

    /// The same on a Unix socket.
    pub(super) fn unix(
        &mut self,
        path: &Path,
        ownership: Ownership,
        directory_mode: Option<u32>,
    ) -> Result<Listener, BindError> {
        let address = Address::Unix(path.to_owned());
        if let Some(socket) = self.sockets.take(&address) {
            return Listener::passed(socket, address);
        }
        let take = |passed| Listener::passed_unix(path, ownership, directory_mode, passed);
        match self.passed(&address, take) {
            Some(listener) => Ok(listener),
            None => Listener::unix(path, ownership, directory_mode).and_then(|listener| self.note(listener)),
        }
    }

    /// Opens the place where the next process comes. Where that is taken by another process, there is none.
    pub(super) fn meet(&mut self) -> Result<(), BindError> {
        let Some(path) = self.at.clone() else { return Ok(()) };
        let address = Address::Unix(path.clone());
        let passed = self.passed(&address, |passed| Listener::passed_private(&path, passed));
        // Its own handle is made when it is needed.
        self.to_pass.retain(|(passed, _)| passed.label != address.to_string());
        self.meeting = match passed.map_or_else(|| Listener::private(&path), Ok) {
            Ok(listener) => Some(listener),
            Err(BindError::InUse { .. }) => {
                tracing::warn!(
                    "process.takeover is in use by another process; nothing can take over from this one"
                );
                None
            }
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// A listener of the process before, if it has one there that this one can go on with.
    fn passed(
        &mut self,
        address: &Address,
        take: impl FnOnce(Passed) -> Result<Listener, BindError>,
    ) -> Option<Listener> {
        let label = address.to_string();
        let passed = self.inheritance.as_mut()?.listener(&label)?;
        match take(passed).and_then(|listener| self.note(listener)) {
            Ok(listener) => {
                // Until this process takes charge: should it end before, the address is not its own to remove.
                listener.passed_on().set(true);
                self.taken.push(label);
                Some(listener)
            }
            Err(error) => {
                tracing::warn!(listener = label, %error, "this listener of the old process cannot be taken over");
                None
            }
        }
    }

    /// Keeps another handle of a listener, if a next process may want it.
    fn note(&mut self, listener: Listener) -> Result<Listener, BindError> {
        if self.at.is_some() {
            let passing = listener.to_pass().map_err(|error| BindError::NotPassed { error })?;
            self.to_pass.push(passing);
        }
        Ok(listener)
    }

    /// True once a listener is to be served from: at once, or, where the process before does so, once this one is ready.
    pub(super) fn opened(&self, listener: &Listener) -> watch::Receiver<bool> {
        if self.taken.iter().any(|label| label == listener.label()) {
            self.opening.subscribe()
        } else {
            watch::channel(true).1
        }
    }

    /// Takes charge once nothing else keeps this process from being ready; then waits until the next one has done the
    /// same, for ever if there is none.
    pub(super) async fn run(self, cache: Cache, block: Option<BlockReady>) -> Result<Successor, BindError> {
        if let Some(inheritance) = self.inheritance {
            if let Some(block) = &block {
                block.is_last().await;
            }
            let meeting = self.meeting.as_ref().map(Listener::passed_on);
            for passed_on in self.to_pass.iter().map(|(_, passed_on)| passed_on).chain(&meeting) {
                passed_on.set(false);
            }
            self.opening.send_replace(true);
            inheritance.take_charge(self.taken).await;
        }
        drop(block);
        match self.meeting {
            Some(meeting) => {
                let estate = Estate::new(meeting, self.terms, self.to_pass, cache);
                Ok(estate.map_err(|error| BindError::NotPassed { error })?.pass_on().await)
            }
            None => std::future::pending().await,
        }
    }
}

/// What decides which secrets there are, and under which names. The secrets of a file are at hand, and may have changed.
fn source(
    config: &Config,
    environment: &Environment,
    region: Option<&str>,
) -> Option<BTreeMap<String, String>> {
    if config.source != SourceConfig::Aws {
        return None;
    }
    let aws = &config.aws;
    let endpoint_url = aws.endpoint_url.as_deref().or(environment.endpoint_url());
    let configured = [
        ("region", region),
        ("endpoint_url", endpoint_url),
        ("sts_endpoint_url", aws.sts_endpoint_url.as_deref()),
        ("profile", aws.profile.as_deref()),
        ("role_arn", aws.role_arn.as_deref()),
    ];
    let configured = configured.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let all = configured.chain(environment.aws_identity());
    Some(all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}
