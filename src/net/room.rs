//! Room for connections on one listener: how many there may be in all and of one user, and who gives way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::{Activity, ConnectionMetrics, Peer};

/// How many connections are asked at a time to give way, those first that have waited longest to be asked.
const ASKED_AT_A_TIME: usize = 32;

/// A connection that gives way must have been idle for so long: a client that sends one request after the other is
/// not cut off between two of them.
const IDLE: Duration = Duration::from_millis(100);

/// How long to wait before more are asked.
const ASK_PAUSE: Duration = Duration::from_millis(10);

/// The room of one listener.
#[derive(Debug)]
pub(super) struct Room {
    shared: Arc<Shared>,
    max_per_user: usize,
}

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    /// Connections that could be asked to give way wait for it, the first in line first.
    give_way: Notify,
    users: Mutex<HashMap<u32, usize>>,
    metrics: ConnectionMetrics,
}

impl Room {
    pub(super) fn new(max_connections: usize, max_per_user: usize, metrics: ConnectionMetrics) -> Self {
        let places = Arc::new(Semaphore::new(max_connections));
        let shared = Shared { places, give_way: Notify::new(), users: Mutex::default(), metrics };
        Self { shared: Arc::new(shared), max_per_user }
    }

    /// A place for a newcomer. `None` if its user has as many as one may have; where the listener is full, it waits until
    /// somebody leaves, and those who are idle are asked to.
    pub(super) async fn place_for(&self, peer: Peer) -> Option<Place> {
        let user = self.user(peer)?;
        loop {
            if let Ok(permit) = Arc::clone(&self.shared.places).try_acquire_owned() {
                return Some(Place::new(permit, user));
            }
            for _ in 0..ASKED_AT_A_TIME {
                self.shared.give_way.notify_one();
            }
            if let Ok(Ok(permit)) = timeout(ASK_PAUSE, Arc::clone(&self.shared.places).acquire_owned()).await
            {
                return Some(Place::new(permit, user));
            }
        }
    }

    /// As [`Room::place_for`], but `None` where it would have to wait.
    pub(super) fn place_at_once(&self, peer: Peer) -> Option<Place> {
        let user = self.user(peer)?;
        let permit = Arc::clone(&self.shared.places).try_acquire_owned().ok()?;
        Some(Place::new(permit, user))
    }

    /// Counts a connection of this user, if it may have one more.
    fn user(&self, peer: Peer) -> Option<User> {
        let uid = match peer {
            Peer::Unix { uid, .. } => Some(uid),
            Peer::Tcp(_) => None,
        };
        if let Some(uid) = uid {
            let mut users = self.shared.users.lock().unwrap_or_else(PoisonError::into_inner);
            let open = users.entry(uid).or_default();
            if *open >= self.max_per_user {
                self.shared.metrics.refused.inc();
                return None;
            }
            *open += 1;
        }
        Some(User { uid, shared: Arc::clone(&self.shared) })
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    user: User,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, user: User) -> Self {
        user.shared.metrics.open.inc();
        Self { user, _permit: permit }
    }

    /// Waits until this connection is to give way to a newcomer: when it is asked to, is idle and has been since it stood
    /// in line, and there is still no room. One that was used meanwhile goes to the end of the line.
    pub(super) async fn given_up(&self, activity: &Activity) {
        let shared = &self.user.shared;
        loop {
            let before = activity.so_far();
            shared.give_way.notified().await;
            if activity.so_far() != before || !activity.is_idle() {
                continue;
            }
            sleep(IDLE).await;
            if activity.so_far() == before && activity.is_idle() && shared.places.available_permits() == 0 {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.user.shared.metrics.open.dec();
    }
}

/// One connection in its user's count.
#[derive(Debug)]
struct User {
    uid: Option<u32>,
    shared: Arc<Shared>,
}

impl Drop for User {
    fn drop(&mut self) {
        let Some(uid) = self.uid else { return };
        let mut users = self.shared.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = users.get_mut(&uid) {
            *open -= 1;
            if *open == 0 {
                users.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounter, IntGauge};

    use super::*;

    fn room(max_connections: usize, max_per_user: usize) -> Room {
        let (open, refused) = (IntGauge::new("open", "open").unwrap(), IntCounter::new("no", "no").unwrap());
        Room::new(max_connections, max_per_user, ConnectionMetrics { open, refused })
    }

    fn of_user(uid: u32) -> Peer {
        Peer::Unix { uid, gid: 0, pid: None }
    }

    #[tokio::test]
    async fn a_user_has_no_more_than_its_share_and_others_have_theirs() {
        let room = room(10, 2);
        let first = room.place_for(of_user(1)).await.unwrap();
        let _second = room.place_for(of_user(1)).await.unwrap();
        assert!(room.place_for(of_user(1)).await.is_none());
        assert!(room.place_for(of_user(2)).await.is_some());
        assert_eq!((room.shared.metrics.open.get(), room.shared.metrics.refused.get()), (2, 1));
        drop(first);
        assert!(room.place_for(of_user(1)).await.is_some());
    }

    /// A connection that stands in line; it has served a request since, or it has not.
    fn standing(place: Place) -> (Arc<Activity>, tokio::task::JoinHandle<()>) {
        let activity = Arc::new(Activity::default());
        let standing = Arc::clone(&activity);
        (activity, tokio::spawn(async move { place.given_up(&standing).await }))
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_idle_gives_way_and_who_is_not_is_waited_for() {
        let room = room(2, 2);
        let (_, leaving) = standing(room.place_for(of_user(1)).await.unwrap());
        let (busy, staying) = standing(room.place_for(of_user(1)).await.unwrap());
        busy.begin();
        let _newcomer = room.place_for(of_user(2)).await.unwrap();
        leaving.await.unwrap();
        let next = timeout(Duration::from_secs(5), room.place_for(of_user(2))).await;
        assert!(next.is_err() && !staying.is_finished());
        busy.end();
        assert!(room.place_for(of_user(2)).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_give_way_than_there_are_newcomers() {
        let room = room(100, 100);
        let mut standing: Vec<_> = Vec::new();
        for _ in 0..100 {
            standing.push(self::standing(room.place_for(of_user(1)).await.unwrap()));
        }
        sleep(IDLE).await;
        let _newcomer = room.place_for(of_user(2)).await.unwrap();
        sleep(IDLE * 5).await;
        let gone = standing.iter().filter(|(_, standing)| standing.is_finished()).count();
        assert!((1..=2).contains(&gone), "{gone}");
        assert!(!standing[99].1.is_finished(), "the last in line");
    }
}
