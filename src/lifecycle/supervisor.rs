//! Tasks that must run as long as the process does. Nothing dies unnoticed: the first that ends, whether
//! it returns or panics, ends the process with its name.

use std::future::Future;

use tokio::task::JoinSet;

/// Owner of the process's background tasks.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<TaskEnd>,
}

/// A task that ended though it should not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// Its name.
    pub name: &'static str,
    /// Whether it panicked; else it returned.
    pub panicked: bool,
}

impl Supervisor {
    /// Runs `task` under a name.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task);
        self.tasks.spawn(async move {
            let mut task = AbortOnDrop(task);
            TaskEnd { name, panicked: (&mut task.0).await.is_err() }
        });
    }

    /// Waits until some task ends; for ever if none does.
    pub async fn first_end(&mut self) -> TaskEnd {
        match self.tasks.join_next().await {
            Some(Ok(end)) => end,
            Some(Err(_)) => TaskEnd { name: "supervisor", panicked: true },
            None => std::future::pending().await,
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_returns_or_panics_is_named() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("steady", std::future::pending());
        supervisor.spawn("fragile", async { panic!("told to") });
        assert_eq!(supervisor.first_end().await, TaskEnd { name: "fragile", panicked: true });
        supervisor.spawn("short", async {});
        assert_eq!(supervisor.first_end().await, TaskEnd { name: "short", panicked: false });
    }
}
