//! The end of the process: requests in flight are finished, and what was held is wiped.

use std::pin::pin;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::AppError;
use crate::audit::Audit;
use crate::cache::Cache;
use crate::config::AfterTakeover;
use crate::lifecycle::{Drain, Readiness, ServiceManager, Signals, Supervisor};
use crate::net::{self, PassedOn};
use crate::takeover::{self, Successor, Terms};

/// How long the end waits for an output of the audit trail that does not take its last lines.
const AUDIT_PATIENCE: Duration = Duration::from_secs(1);

/// What is to come after a process that ends as it should.
#[derive(Debug, PartialEq, Eq)]
pub enum Finish {
    /// Nothing.
    Ended,
    /// The same again: the process that has taken over from this one may be gone.
    StartAgain,
}

/// How long a process that is to wait does so. Whoever started it ends it by then, or needs it again.
const WAIT_AT_MOST: Duration = Duration::from_mins(2);

/// Why the process ends as it should.
pub(super) enum End {
    /// A signal of this name said so.
    Told(&'static str),
    /// Another process has taken over.
    Succeeded(Successor),
}

/// What has to end, and how.
pub(super) struct Ending {
    pub(super) audit: Audit,
    pub(super) cache: Cache,
    /// Those that keep values, or have them fetched.
    pub(super) keepers: Supervisor,
    pub(super) readiness: Readiness,
    pub(super) service_manager: ServiceManager,
    /// For whom what is held is left with the service manager, if that keeps it.
    pub(super) to_leave: Option<Terms>,
    pub(super) drain: Drain,
    pub(super) drain_timeout: Duration,
    /// The ops listener answers until all others are done, unless another process has it.
    pub(super) ops_drain: Drain,
    pub(super) ops_passed_on: PassedOn,
    pub(super) after_takeover: AfterTakeover,
}

impl Ending {
    /// Ends all; at once if a further signal says so, or where a part has failed.
    pub(super) async fn run(
        self,
        end: Result<End, AppError>,
        signals: &mut Signals,
    ) -> Result<Finish, AppError> {
        let end = match end {
            Ok(end) => end,
            Err(error) => {
                self.audit.finish(AUDIT_PATIENCE).await;
                return Err(error);
            }
        };
        let successor = match end {
            End::Told(signal) => {
                tracing::info!(signal, "ending: finishing requests in flight");
                None
            }
            End::Succeeded(successor) => {
                tracing::info!("another process has taken over: finishing requests in flight");
                Some(successor)
            }
        };
        let mut is_told = successor.is_none();
        let to_wait = successor.is_some() && self.after_takeover == AfterTakeover::Wait;
        if to_wait {
            self.readiness.stand_by();
        } else {
            self.readiness.start_draining();
        }
        // The next process answers there. When a signal ends this one, nobody else does yet, even if the socket stays open.
        if !is_told && self.ops_passed_on.is_set() {
            tokio::spawn(self.ops_drain.finish());
        }
        if !to_wait {
            self.service_manager.stopping().await;
        }
        // What is due is fetched by the next process, or not at all.
        drop(self.keepers);
        let to_leave = self.to_leave.filter(|_| is_told);
        let leave_and_wipe = async {
            if let Some(terms) = to_leave {
                leave(&self.cache, terms, &self.service_manager).await;
            }
            self.cache.close();
            tracing::info!("the values in memory are wiped");
        };
        tokio::select! {
            finished = finish(self.drain, self.drain_timeout, leave_and_wipe) => {
                if finished.is_err() {
                    tracing::warn!("requests in flight did not finish within drain_timeout and are cut off");
                }
            }
            () = second_signal(signals, &mut is_told) => {
                self.audit.finish(AUDIT_PATIENCE).await;
                return Err(AppError::Interrupted);
            }
        }
        self.audit.finish(AUDIT_PATIENCE).await;
        if let Some(successor) = successor.filter(|_| to_wait && !is_told) {
            tracing::info!("nothing is left to do: waiting to be told to end");
            tokio::select! {
                _ = signals.end() => {}
                reason = needed_again(successor.gone()) => {
                    tracing::warn!(reason, "starting again");
                    return Ok(Finish::StartAgain);
                }
            }
        }
        if to_wait {
            self.readiness.start_draining();
            self.service_manager.stopping().await;
        }
        tracing::info!("ended");
        Ok(Finish::Ended)
    }
}

/// Returns why a process that waits may be needed again, once that is so. An update that is taken back can end the process
/// that has taken over and keep this one, or leave both, of which only the other serves.
async fn needed_again(successor_is_gone: impl Future<Output = ()>) -> &'static str {
    match timeout(WAIT_AT_MOST, successor_is_gone).await {
        Ok(()) => "the process that has taken over has ended",
        Err(_) => "nobody has ended this process for two minutes",
    }
}

/// Waits for a signal that cuts the end short: the second one that ends the process, which may not have been told by a
/// first.
async fn second_signal(signals: &mut Signals, is_told: &mut bool) {
    if !*is_told {
        signals.end().await;
        *is_told = true;
    }
    signals.end().await;
}

/// Leaves what is held with the service manager: for the next process, or, if that is not to come, for nobody.
async fn leave(cache: &Cache, terms: Terms, service_manager: &ServiceManager) {
    let held = cache.hand_over();
    let count = held.len();
    match spawn_blocking(move || takeover::stored(&held, &terms)).await {
        Ok(Ok(Some(memory))) => {
            if service_manager.keep(net::STORED, memory).await {
                tracing::info!(count, "what is held is left with the service manager for the next process");
            }
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "what is held cannot be left; the next process starts cold"),
        Err(error) => tracing::error!(%error, "what is held cannot be left; the next process starts cold"),
    }
}

/// Waits for the requests in flight, for so long at most. What is in memory for others is wiped as soon as no others
/// can come: idle connections are closed after [`net::LINGER`], and what came by them just before is under way.
async fn finish(drain: Drain, at_most: Duration, wipe: impl Future<Output = ()>) -> Result<(), Elapsed> {
    let mut finishing = pin!(timeout(at_most, drain.finish()));
    let finished = timeout(net::LINGER * 2, finishing.as_mut()).await;
    wipe.await;
    match finished {
        Ok(finished) => finished,
        Err(_) => finishing.await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_that_waits_does_so_for_two_minutes_at_most() {
        let since = Instant::now();
        assert!(needed_again(ready(())).await.contains("has ended"));
        assert_eq!(since.elapsed(), Duration::ZERO);
        assert!(needed_again(pending()).await.contains("for two minutes"));
        assert_eq!(since.elapsed(), WAIT_AT_MOST);
    }
}
