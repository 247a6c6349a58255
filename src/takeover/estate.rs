//! The old process's side: it waits for the next one, and passes on what it has.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::channel::Channel;
use super::{
    Claim, Holdings, Listener as Announced, PATIENCE, PROTOCOL, Reply, Taken, Terms, entries, memory,
    network, withheld,
};
use crate::cache::Cache;
use crate::net::{Listener, Passed, PassedOn, Peer};

/// What a process leaves to the next.
#[derive(Debug)]
pub struct Estate {
    /// Where the next one comes.
    at: Listener,
    terms: Terms,
    listeners: Vec<(Passed, PassedOn)>,
    cache: Cache,
}

/// The process that has taken over.
#[derive(Debug)]
pub struct Successor(Channel);

impl Successor {
    /// Waits until it has ended, however that comes.
    pub async fn gone(mut self) {
        self.0.closed().await;
    }
}

impl Estate {
    /// Of the listeners, further handles of their sockets. `at` is one of them by itself.
    pub fn new(
        at: Listener,
        terms: Terms,
        mut listeners: Vec<(Passed, PassedOn)>,
        cache: Cache,
    ) -> io::Result<Self> {
        listeners.push(at.to_pass()?);
        Ok(Self { at, terms, listeners, cache })
    }

    /// Waits until another process has taken over.
    pub async fn pass_on(self) -> Successor {
        loop {
            let (stream, peer) = self.at.accept_unix().await;
            let (uid, pid) = match peer {
                Peer::Unix { uid, pid, .. } => (uid, pid),
                Peer::Tcp(_) => continue,
            };
            if uid != self.terms.uid {
                tracing::warn!(uid, pid, "a process of another user would take over; it gets nothing");
                continue;
            }
            match self.pass_to(Channel::new(stream)).await {
                Ok(successor) => return successor,
                Err(error) => {
                    for (_, passed_on) in &self.listeners {
                        passed_on.set(false);
                    }
                    tracing::warn!(pid, %error, "another process has not taken over; this one goes on as before");
                }
            }
        }
    }

    async fn pass_to(&self, mut heir: Channel) -> io::Result<Successor> {
        let claim = timeout(PATIENCE, self.offer(&mut heir)).await.map_err(|_| ErrorKind::TimedOut)??;
        tracing::info!(version = claim.version, "another process is about to take over");
        // As long as it takes: it is not ready before it serves as well as this one.
        let (taken, _) = heir.receive::<Taken>().await?;
        for (passed, passed_on) in &self.listeners {
            passed_on.set(taken.listeners.contains(&passed.label));
        }
        Ok(Successor(heir))
    }

    /// Passes everything on. The other process serves nobody yet.
    async fn offer(&self, heir: &mut Channel) -> io::Result<Claim> {
        let (claim, _) = heir.receive::<Claim>().await?;
        if claim.protocol != PROTOCOL {
            let reason = format!(
                "it speaks version {} of the protocol, and the old one, smcached {}, version {PROTOCOL}",
                claim.protocol,
                env!("CARGO_PKG_VERSION")
            );
            heir.send(&Reply::Refused { reason: reason.clone() }, &[]).await?;
            return Err(io::Error::other(reason));
        }
        let is_same_network = claim.network.is_some() && claim.network == network();
        let may_pass = |passed: &&(Passed, PassedOn)| passed.0.file.is_some() || is_same_network;
        let listeners: Vec<_> = self.listeners.iter().filter(may_pass).collect();
        let withheld = withheld(claim.format, claim.source.as_ref(), self.terms.source.as_ref());
        let reply = Reply::Granted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: listeners.len(),
            withheld: withheld.clone(),
        };
        heir.send(&reply, &[]).await?;
        for (passed, passed_on) in listeners {
            // From here on it may be in charge without a word, should this process end now: the file stays.
            passed_on.set(true);
            let file = passed.file.as_ref();
            let announced = Announced { label: passed.label.clone(), file: file.map(|file| file.identity) };
            let lock = file.map(|file| file.lock.as_fd());
            let descriptors: Vec<_> = [passed.socket.as_fd()].into_iter().chain(lock).collect();
            heir.send(&announced, &descriptors).await?;
        }
        match withheld {
            Some(reason) => {
                tracing::info!(reason, "another process takes over what is open, but not what is held");
            }
            None => {
                let held = self.cache.hand_over();
                let writing = spawn_blocking(move || memory::sealed(|file| entries::write(&held, file)));
                let memory = writing.await.map_err(io::Error::other)??;
                heir.send(&Holdings {}, &[memory.as_fd()]).await?;
            }
        }
        Ok(claim)
    }
}
