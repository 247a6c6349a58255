//! Secrets as files: one task a directory, which waits for other versions and writes them. For programs that know
//! nothing but files.
//!
//! - `write` makes files that nobody sees half done.
//! - `hook` does what is to be done after a change.
//!
//! A revoked secret's file is removed; while AWS fails, it stays. Files stay when the process ends, so that readers
//! outlast its restart.

mod hook;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use self::hook::Hook;

use crate::cache::{Cache, Demand, ReadError};
use crate::metrics::ProjectionMetrics;
use crate::net::Ownership;
use crate::secret::{Field, SecretKey, SecretVersion};
use crate::source::ErrorClass;

/// The longest wait for another version before it is asked anew; only bounds a defect.
const WAIT: Duration = Duration::from_mins(10);

/// After a refusal it is looked again whether the secret has come back; jittered by half.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);

/// After a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Changes that come within this time are switched together.
const LINGER: Duration = Duration::from_millis(100);

/// How long a set of files is kept after another took its place, for those who had looked it up.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// When a file could not be written, as on a full file system, it is tried again after this time.
const WRITE_PAUSE: Duration = Duration::from_secs(5);

/// The magic number of ramfs, which has no name in the system's headers.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// One directory of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The directory.
    pub dir: PathBuf,
    /// What is written there.
    pub files: Vec<ProjectedFile>,
    /// The files' mode, owner and group.
    pub owner: Ownership,
    /// Whether all change in one step.
    pub together: bool,
    /// What is done after a change.
    pub hook: Option<Hook>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectedFile {
    /// Where it lies below the directory.
    pub target: PathBuf,
    /// What it holds.
    pub key: SecretKey,
    /// Which part of that.
    pub field: Option<Field>,
}

/// Keeps the files of all projects; what is wanted may change. Calls `ready` once all files have been tried or
/// `patience` is over. Returns only if a task of it fails.
pub async fn run(
    cache: Cache,
    mut wanted: watch::Receiver<Vec<Project>>,
    metrics: ProjectionMetrics,
    patience: Duration,
    ready: impl FnOnce() + Send + 'static,
) {
    let mut running: Vec<Running> = Vec::new();
    let mut tasks = JoinSet::new();
    let first = wanted.borrow_and_update().clone();
    let mut tried = Vec::new();
    for project in first {
        tried.push(start(project, &cache, &metrics, &mut running, &mut tasks));
    }
    tokio::spawn(async move {
        let all = async {
            for tried in tried {
                // An error means that the project was taken out again.
                let _ = tried.await;
            }
        };
        if timeout(patience, all).await.is_err() {
            tracing::warn!("not all projected files could be written in time; trying on");
        }
        ready();
    });
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    // Nobody is left who could want something else.
                    std::future::pending::<()>().await;
                }
                let next = wanted.borrow_and_update().clone();
                replace(next, &cache, &metrics, &mut running, &mut tasks).await;
            }
            Some(ended) = tasks.join_next() => {
                // One that was told to end is no longer among those that run.
                let is_missed = |number| running.iter().any(|running| running.number == number);
                if ended.ok().is_none_or(is_missed) {
                    return;
                }
            }
        }
    }
}

/// A project whose files are kept.
struct Running {
    project: Project,
    /// Tells it from one of the same directory that came before.
    number: u64,
    /// Dropped to end it.
    stop: oneshot::Sender<()>,
    /// Answers when it has ended.
    ended: oneshot::Receiver<()>,
}

fn start(
    project: Project,
    cache: &Cache,
    metrics: &ProjectionMetrics,
    running: &mut Vec<Running>,
    tasks: &mut JoinSet<u64>,
) -> oneshot::Receiver<()> {
    let (stop, stopped) = oneshot::channel();
    let (ending, ended) = oneshot::channel();
    let (trying, tried) = oneshot::channel();
    let keeper = Keeper::new(project.clone(), cache.clone(), metrics.clone());
    let number = fastrand::u64(..);
    tasks.spawn(async move {
        keeper.keep(trying, stopped).await;
        drop(ending);
        number
    });
    running.push(Running { project, number, stop, ended });
    tried
}

/// Ends what is no longer wanted, removes its files, and starts what is new.
async fn replace(
    wanted: Vec<Project>,
    cache: &Cache,
    metrics: &ProjectionMetrics,
    running: &mut Vec<Running>,
    tasks: &mut JoinSet<u64>,
) {
    let (kept, outdated): (Vec<_>, Vec<_>) =
        running.drain(..).partition(|running| wanted.contains(&running.project));
    *running = kept;
    for Running { project, stop, ended, .. } in outdated {
        drop(stop);
        let _ = ended.await;
        let next = wanted.iter().find(|other| other.dir == project.dir && other.together == project.together);
        let still: Vec<PathBuf> =
            next.into_iter().flat_map(|next| &next.files).map(|file| file.target.clone()).collect();
        let is_continued = next.is_some();
        let dir = project.dir.clone();
        let removed = blocking(move || {
            match (project.together, is_continued) {
                // The next set takes its place.
                (true, true) => Ok(()),
                (true, false) => write::dissolve(&project.dir),
                (false, _) => {
                    let outdated = project.files.iter().filter(|file| !still.contains(&file.target));
                    // All are tried, whatever becomes of one.
                    outdated
                        .map(|file| write::remove(&project.dir, &file.target).map(drop))
                        .fold(Ok(()), io::Result::and)
                }
            }
        });
        if let Err(error) = removed.await {
            tracing::warn!(dir = %dir.display(), %error, "files that are no longer wanted cannot be removed");
        }
    }
    for project in wanted {
        if !running.iter().any(|running| running.project == project) {
            drop(start(project, cache, metrics, running, tasks));
        }
    }
}

/// What is known of one file's secret.
#[derive(Debug, Clone)]
enum Content {
    /// Nothing yet, or nothing that counts: AWS fails.
    Unknown,
    /// A version.
    Version(Arc<SecretVersion>),
    /// It is gone or forbidden.
    Gone,
}

/// What a watcher has to say of its file.
struct News {
    index: usize,
    /// `None`: it was tried in vain.
    content: Option<Content>,
}

/// Keeps the files of one project.
struct Keeper {
    project: Arc<Project>,
    cache: Cache,
    metrics: ProjectionMetrics,
    contents: Vec<Content>,
    tried: Vec<bool>,
    /// A set has been published, or every file has been tried: what comes after is a change.
    is_settled: bool,
    /// Something could not be written or removed.
    has_failed: bool,
}

impl Keeper {
    fn new(project: Project, cache: Cache, metrics: ProjectionMetrics) -> Self {
        let count = project.files.len();
        let contents = vec![Content::Unknown; count];
        Self {
            project: Arc::new(project),
            cache,
            metrics,
            contents,
            tried: vec![false; count],
            is_settled: false,
            has_failed: false,
        }
    }

    /// Until `stopped` resolves. `trying` is told once every file has been tried.
    async fn keep(mut self, trying: oneshot::Sender<()>, mut stopped: oneshot::Receiver<()>) {
        let dir = self.project.dir.clone();
        if let Err(error) = blocking(move || prepare(&dir)).await {
            tracing::warn!(dir = %self.project.dir.display(), %error, "a directory for secrets cannot be made");
        }
        let (telling, mut news) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        for (index, file) in self.project.files.iter().enumerate() {
            tasks.spawn(watch(self.cache.clone(), file.key.clone(), index, telling.clone()));
        }
        drop(telling);
        let changed = Arc::new(Notify::new());
        if let Some(hook) = self.project.hook.clone() {
            tasks.spawn(hook::follow(hook, self.project.dir.clone(), Arc::clone(&changed)));
        }
        let mut trying = Some(trying);
        let mut switch_at: Option<Instant> = None;
        let mut sweep_at: Option<Instant> = None;
        let mut retry_at: Option<Instant> = None;
        loop {
            if std::mem::take(&mut self.has_failed) {
                retry_at = Some(Instant::now() + WRITE_PAUSE);
            }
            tokio::select! {
                biased;
                // Sent or dropped, it means the end.
                _ = &mut stopped => break,
                told = news.recv() => {
                    let Some(News { index, content }) = told else { break };
                    self.tried[index] = true;
                    if let Some(content) = content {
                        self.contents[index] = content;
                        if self.project.together {
                            // From the first of those that come together, so that no stream of them puts it off.
                            switch_at = switch_at.or(Some(Instant::now() + LINGER));
                        } else if self.write(index).await && self.is_settled {
                            changed.notify_one();
                        }
                    }
                    if switch_at.is_none() {
                        self.settle_if_tried(&mut trying);
                    }
                }
                () = sleep_until(switch_at.unwrap_or_else(Instant::now)), if switch_at.is_some() => {
                    switch_at = None;
                    if self.switch().await {
                        sweep_at = Some(Instant::now() + KEPT_FOR);
                        if self.is_settled {
                            changed.notify_one();
                        }
                        self.is_settled = true;
                    }
                    self.settle_if_tried(&mut trying);
                }
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    retry_at = None;
                    if self.project.together {
                        switch_at = Some(Instant::now());
                    } else if self.write_all().await {
                        changed.notify_one();
                    }
                }
                () = sleep_until(sweep_at.unwrap_or_else(Instant::now)), if sweep_at.is_some() => {
                    sweep_at = None;
                    let dir = self.project.dir.clone();
                    let swept = blocking(move || write::sweep(&dir).map(|()| false)).await;
                    self.note("removed", swept, None);
                }
            }
        }
    }

    /// Once every file has been tried, what comes after is a change.
    fn settle_if_tried(&mut self, trying: &mut Option<oneshot::Sender<()>>) {
        if !self.tried.iter().all(|tried| *tried) {
            return;
        }
        self.is_settled = true;
        if let Some(trying) = trying.take() {
            let _ = trying.send(());
        }
    }

    /// Writes or removes every file of which something is known; true if any changed.
    async fn write_all(&mut self) -> bool {
        let mut has_changed = false;
        for index in 0..self.contents.len() {
            if !matches!(self.contents[index], Content::Unknown) {
                has_changed |= self.write(index).await;
            }
        }
        has_changed
    }

    /// Writes or removes one file; true if that changed it.
    async fn write(&mut self, index: usize) -> bool {
        let project = Arc::clone(&self.project);
        let Some(target) = project.files.get(index).map(|file| file.target.clone()) else { return false };
        let content = self.content(index);
        let result = if content.is_some() { "written" } else { "removed" };
        let place = target.clone();
        let done = blocking(move || match content {
            Some(content) => write::put(&project.dir, &place, &content, project.owner),
            None => write::remove(&project.dir, &place),
        });
        self.note(result, done.await, Some(&target))
    }

    /// Makes and switches to a new set, once everything is known; true if that was done.
    async fn switch(&mut self) -> bool {
        if self.contents.iter().any(|content| matches!(content, Content::Unknown)) {
            self.remove_what_is_gone().await;
            return false;
        }
        let contents: Vec<Option<Bytes>> =
            (0..self.contents.len()).map(|index| self.content(index)).collect();
        let project = Arc::clone(&self.project);
        let switched = blocking(move || {
            let files: Vec<(&Path, &[u8])> = project
                .files
                .iter()
                .zip(&contents)
                .filter_map(|(file, content)| Some((file.target.as_path(), content.as_deref()?)))
                .collect();
            write::switch(&project.dir, &files, project.owner).map(|()| true)
        });
        self.note("written", switched.await, None)
    }

    /// Takes what is revoked out of the set of an earlier process, while another's secret is not known yet.
    async fn remove_what_is_gone(&mut self) {
        let gone = self.project.files.iter().zip(&self.contents);
        let gone = gone.filter(|(_, content)| matches!(content, Content::Gone));
        let targets: Vec<PathBuf> = gone.map(|(file, _)| file.target.clone()).collect();
        let set = self.project.dir.join(write::CURRENT);
        let removed = blocking(move || {
            targets.iter().try_fold(false, |removed, target| Ok(write::remove(&set, target)? || removed))
        });
        self.note("removed", removed.await, None);
    }

    /// The bytes that belong into a file; `None` if it is not to be there.
    fn content(&self, index: usize) -> Option<Bytes> {
        let file = self.project.files.get(index)?;
        let Some(Content::Version(version)) = self.contents.get(index) else { return None };
        let exposed = version.value.expose();
        let Some(field) = &file.field else { return Some(exposed.clone()) };
        let found = field.of(exposed);
        if found.is_none() {
            let (secret, field) = (&file.key.id, field.as_str());
            tracing::warn!(%secret, field, "a projected secret has no such field; its file is removed");
        }
        found
    }

    /// Counts and logs what became of a change; true if files are other than before.
    fn note(&mut self, result: &'static str, done: io::Result<bool>, target: Option<&Path>) -> bool {
        let dir = self.project.dir.display();
        let file = target.map(|target| target.display().to_string());
        match done {
            Ok(changed) => {
                if changed {
                    self.metrics.wrote(result);
                    tracing::info!(%dir, file, result, "projected");
                }
                changed
            }
            Err(error) => {
                self.has_failed = true;
                self.metrics.wrote("failed");
                tracing::error!(%dir, file, %error, "a secret cannot be written to its file");
                false
            }
        }
    }
}

/// Waits for other versions of a secret and tells of them, for as long as somebody listens.
async fn watch(cache: Cache, key: SecretKey, index: usize, telling: mpsc::Sender<News>) {
    let mut known: Option<Arc<str>> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let is_known = |id: &str| known.as_deref() == Some(id);
        let until = Instant::now() + WAIT;
        let demand = Demand::default();
        let read = cache.read_next(&key, &demand, until, |held| is_known(&held.version.version_id)).await;
        let (content, rest) = match read {
            Ok(answer) => {
                pause = FIRST_PAUSE;
                let version = &answer.held.version;
                if is_known(&version.version_id) {
                    continue;
                }
                known = Some(version.version_id.clone());
                (Some(Content::Version(Arc::clone(version))), Duration::ZERO)
            }
            Err(ReadError::Source { error, .. }) if error.class() == ErrorClass::Authoritative => {
                let was_there = known.take().is_some();
                if was_there {
                    tracing::warn!(secret = %key.id, reason = error.kind(), "a projected secret is gone; its file is removed");
                }
                (Some(Content::Gone), REFUSED_PAUSE)
            }
            Err(error) => {
                tracing::debug!(secret = %key.id, %error, "a projected secret cannot be read; trying on");
                let rest = pause;
                pause = (pause * 2).min(LONGEST_PAUSE);
                (None, rest)
            }
        };
        if telling.send(News { index, content }).await.is_err() {
            return;
        }
        sleep(rest.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Work on files, off the threads that answer readers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(io::Error::other("panicked; this is a defect of smcached")))
}

/// Makes the directory, removes what was left half written, and warns where values would reach a disk.
fn prepare(dir: &Path) -> io::Result<()> {
    write::clean(&write::make_root(dir)?);
    let kind = statfs(dir)?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
        tracing::warn!(
            dir = %dir.display(),
            "secrets are written to a directory that is not a memory file system; mount a tmpfs there"
        );
    }
    Ok(())
}
