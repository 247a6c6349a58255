//! What the service manager that started the process is told: systemd, as in `sd_notify(3)`. Where there is none, or one
//! that does not want to know, nothing happens.

use std::fs::File;
use std::future::{Future, pending};
use std::os::fd::AsFd;
use std::time::Duration;

use sd_notify::NotifyState::{
    self, FdName, FdStore, FdStoreRemove, Ready, Reloading, Status, Stopping, Watchdog,
};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long a service manager is waited for that does not take what it is told.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells the service manager how far the process is. It takes a process for started when it is first told that it is
/// ready, so nothing else is said before that.
#[derive(Debug, Default)]
pub struct ServiceManager {
    is_started: bool,
}

impl ServiceManager {
    /// Whether it knows that the process was ready once.
    pub fn is_started(&self) -> bool {
        self.is_started
    }

    /// Leaves a file with it, to be passed to the next process under this name; if there is to be none, it is freed. False
    /// if it cannot be told.
    pub async fn keep(&self, name: &'static str, file: File) -> bool {
        tell_with(vec![FdStore, FdName(name)], Some(file)).await
    }

    /// What is kept under this name is not needed any more.
    pub async fn forget(&self, name: &'static str) {
        tell(vec![FdStoreRemove, FdName(name)]).await;
    }

    /// What there is to wait for may take a while.
    pub async fn preparing(&self) {
        tell(vec![Status("listening; not ready before what is to be preloaded is there")]).await;
    }

    /// The process is ready.
    pub async fn ready(&mut self) {
        self.is_started = true;
        tell(vec![Ready, Status("serving")]).await;
    }

    /// The configuration is read again by `reload`, which says whether that went well. Whatever came of it, the process
    /// serves on.
    pub async fn during_reload(&self, reload: impl Future<Output = bool>) {
        if !self.is_started {
            reload.await;
            return;
        }
        let now = NotifyState::monotonic_usec_now().ok();
        tell([Reloading].into_iter().chain(now).chain([Status("reading the configuration")]).collect()).await;
        let status = if reload.await {
            "serving"
        } else {
            "serving; the configuration cannot be reloaded, and the old one stays: see the log"
        };
        tell(vec![Ready, Status(status)]).await;
    }

    /// The process is about to end.
    pub async fn stopping(&self) {
        tell(vec![Stopping, Status("finishing requests in flight")]).await;
    }
}

/// Gives a sign of life twice in the time after which the service manager takes the process for dead, if it does so at
/// all. To be run where requests are served: as long as this has its turns there, so have they.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return pending().await;
    };
    let mut turns = interval(limit / 2);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        tell(vec![Watchdog]).await;
    }
}

async fn tell(news: Vec<NotifyState<'static>>) {
    tell_with(news, None).await;
}

/// Sends it from a thread of its own: a service manager that is stuck must not hold up those who are served.
async fn tell_with(news: Vec<NotifyState<'static>>, file: Option<File>) -> bool {
    let tell = move || match &file {
        Some(file) => sd_notify::notify_with_fds(&news, &[file.as_fd()]),
        None => sd_notify::notify(&news),
    };
    let told = timeout(PATIENCE, spawn_blocking(tell)).await;
    let error = match told {
        Ok(Ok(Ok(()))) => return true,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(error, "the service manager cannot be told how the daemon is");
    false
}
