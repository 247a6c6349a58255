//! The new process's side: it asks for what the old one has, and says when it is in charge.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::path::Path;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::channel::Channel;
use super::entries::{self, Held};
use super::{Claim, Holdings, Listener, PATIENCE, PROTOCOL, Reply, Taken, Terms, memory, network};
use crate::net::{Passed, PassedFile};

/// What an old process has left to this one.
#[derive(Debug)]
pub struct Inheritance {
    channel: Channel,
    listeners: Vec<Passed>,
    held: Option<Held>,
}

impl Inheritance {
    /// Asks the process that waits at a private socket, if there is one. Why it gives nothing is said.
    pub async fn claim(path: &Path, terms: &Terms) -> Option<Self> {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                tracing::info!("there is no process to take over from; starting cold");
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, "the process at process.takeover cannot be reached; starting cold");
                return None;
            }
        };
        let channel = Channel::new(stream);
        match channel.peer() {
            Ok(uid) if uid == terms.uid => {}
            peer => {
                tracing::warn!(uid = peer.ok(), "process.takeover is another user's; starting cold");
                return None;
            }
        }
        let claimed = timeout(PATIENCE, Self::claim_from(channel, terms)).await;
        let claimed = claimed.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        claimed
            .inspect_err(
                |error| tracing::warn!(%error, "the old process cannot be taken over; starting cold"),
            )
            .ok()
    }

    async fn claim_from(mut channel: Channel, terms: &Terms) -> io::Result<Self> {
        let asked_at = Instant::now();
        let claim = Claim {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: entries::FORMAT,
            source: terms.source.clone(),
            network: network(),
        };
        channel.send(&claim, &[]).await?;
        let (count, version, withheld) = match channel.receive::<Reply>().await?.0 {
            Reply::Refused { reason } => return Err(io::Error::other(reason)),
            Reply::Granted { listeners, version, withheld } => (listeners, version, withheld),
        };
        let mut listeners = Vec::new();
        for _ in 0..count {
            let (Listener { label, file }, descriptors) = channel.receive().await?;
            let mut descriptors = descriptors.into_iter();
            let mut next = || descriptors.next().ok_or(ErrorKind::InvalidData);
            let socket = next()?;
            let file = match file {
                Some(identity) => Some(PassedFile { identity, lock: next()? }),
                None => None,
            };
            listeners.push(Passed { label, socket, file });
        }
        let held = match withheld {
            Some(reason) => {
                tracing::warn!(version, reason, "what the old process held is not taken over; starting cold");
                None
            }
            None => {
                let (Holdings {}, descriptors) = channel.receive().await?;
                let memory = descriptors.into_iter().next().ok_or(ErrorKind::InvalidData)?;
                Some(Held::read(memory::received(memory.into())?, asked_at)?)
            }
        };
        tracing::info!(version, listeners = count, "taking over from the old process");
        Ok(Self { channel, listeners, held })
    }

    /// A listener of the old process; once.
    pub fn listener(&mut self, label: &str) -> Option<Passed> {
        let at = self.listeners.iter().position(|passed| passed.label == label)?;
        Some(self.listeners.swap_remove(at))
    }

    /// What was held, if it is of use; once.
    pub fn held(&mut self) -> Option<Held> {
        self.held.take()
    }

    /// Tells the old process that this one serves, by these listeners. What it has left over is closed. The connection stays
    /// open until this process ends: so the old one, if it waits, learns of that.
    pub async fn take_charge(mut self, listeners: Vec<String>) {
        self.listeners.clear();
        match self.channel.send(&Taken { listeners }, &[]).await {
            Ok(()) => {
                tracing::info!("this process has taken over");
                tokio::spawn(async move {
                    let _open = self.channel;
                    pending::<()>().await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the old process has ended before it was taken over; going on without it");
            }
        }
    }
}
