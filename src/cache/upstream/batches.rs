//! Refreshes that share a call. Those that come within a moment, for one region and role, wait for each other and
//! then for their turn together; whoever comes while they wait comes along.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::limits::{Class, Turn};
use super::{Asked, Departure, Upstream, checked};
use crate::cache::slot::Fetch;
use crate::secret::{Origin, SecretKey};
use crate::source::{BatchError, SourceError};

/// How long the first waits for others.
const LINGER: Duration = Duration::from_millis(10);

/// Where one waits for the answer.
pub(super) type Seat = oneshot::Receiver<Asked>;

/// Who waits for a batch, by endpoint.
#[derive(Debug, Default)]
pub(super) struct Batches {
    lines: Mutex<HashMap<Origin, Line>>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Passenger>,
    /// Somebody sees to it that those who wait depart.
    is_attended: bool,
}

#[derive(Debug)]
struct Passenger {
    key: SecretKey,
    teller: oneshot::Sender<Asked>,
    departure: Departure,
}

impl Batches {
    fn lines(&self) -> MutexGuard<'_, HashMap<Origin, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes those who depart together; whether others are left.
    fn take(&self, place: &Origin, at_most: usize) -> (Vec<Passenger>, bool) {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(place) else { return (Vec::new(), false) };
        let mut group = Vec::new();
        while group.len() < at_most
            && let Some(passenger) = line.waiting.pop_front()
        {
            // Whoever left the line goes on in another way.
            if !passenger.teller.is_closed() {
                group.push(passenger);
            }
        }
        line.is_attended = !line.waiting.is_empty();
        (group, line.is_attended)
    }
}

impl Upstream {
    /// Whether refreshes of this endpoint share calls at present.
    pub(super) fn batches_work(&self, place: &Origin) -> bool {
        self.may_batch() && self.endpoint(place, |endpoint| endpoint.ability.is_there(Instant::now()))
    }

    pub(super) fn may_batch(&self) -> bool {
        self.options.load().batch && self.source.max_batch() > 1
    }

    /// How many more would fill the batch that waits for this endpoint.
    pub(in crate::cache) fn room_in_batch(&self, place: &Origin) -> usize {
        if !self.batches_work(place) {
            return 0;
        }
        let size = self.source.max_batch();
        let waiting = self.batches.lines().get(place).map_or(0, |line| line.waiting.len());
        (size - waiting % size) % size
    }

    /// Takes a seat in the next batch.
    pub(super) fn join_batch(self: &Arc<Self>, key: &SecretKey, departure: Departure) -> Seat {
        let (teller, seat) = oneshot::channel();
        let place = key.place();
        let mut lines = self.batches.lines();
        let line = lines.entry(place.clone()).or_default();
        line.waiting.push_back(Passenger { key: key.clone(), teller, departure });
        if !std::mem::replace(&mut line.is_attended, true) {
            let upstream = Arc::clone(self);
            tokio::spawn(async move { upstream.attend(place).await });
        }
        seat
    }

    /// Has those who wait depart, as many as a call takes at a time.
    async fn attend(self: Arc<Self>, place: Origin) {
        sleep(LINGER).await;
        loop {
            if let Some(Asked { probe_at, answer: Err(error), .. }) = self.refused(&place) {
                let (all, _) = self.batches.take(&place, usize::MAX);
                return tell_all(all, || Asked { probe_at, ..Asked::without_call(error.clone()) });
            }
            if !self.batches_work(&place) {
                let (all, _) = self.batches.take(&place, usize::MAX);
                return all.into_iter().for_each(|passenger| self.ask_alone(passenger));
            }
            let turn = self.limits.enter(Class::Refresh, None).await;
            let (group, others_wait) = self.batches.take(&place, self.source.max_batch());
            if let Ok(turn) = turn
                && !group.is_empty()
            {
                let is_proven = self.endpoint(&place, |endpoint| endpoint.ability.is_proven());
                let (upstream, to) = (Arc::clone(&self), place.clone());
                let departing = tokio::spawn(async move { upstream.depart(&to, group, turn).await });
                if !is_proven {
                    let _ended = departing.await;
                }
            }
            if !others_wait {
                return;
            }
        }
    }

    /// One call for a group.
    async fn depart(self: &Arc<Self>, place: &Origin, group: Vec<Passenger>, turn: Turn) {
        let keys: Vec<_> = group.iter().map(|passenger| passenger.key.clone()).collect();
        for passenger in &group {
            passenger.departure.note();
        }
        if let Some(Asked { probe_at, answer: Err(error), .. }) = self.admit(place) {
            return tell_all(group, || Asked { probe_at, ..Asked::without_call(error.clone()) });
        }
        let fetch = Fetch::now();
        let limit = self.options.load().call_timeout();
        let is_batch = keys.len() > 1;
        let asking = async {
            match &keys[..] {
                [key] => Ok(vec![Some(self.source.fetch(key).await)]),
                keys => self.source.fetch_batch(keys).await,
            }
        };
        let answer = timeout(limit, asking).await.unwrap_or(Err(BatchError::Failed(SourceError::Timeout)));
        drop(turn);
        let error = match &answer {
            Ok(answers) if !is_batch => {
                answers.first().and_then(Option::as_ref).and_then(|a| a.as_ref().err())
            }
            // It answered, though not as we would have liked.
            Ok(_) | Err(BatchError::Unsupported) => None,
            Err(BatchError::Failed(error)) => Some(error),
        };
        let operation = match keys.first() {
            Some(only) if !is_batch => self.source.operation(only),
            _ => self.source.batch_operation(),
        };
        let result = match (&answer, error) {
            (Err(BatchError::Unsupported), _) => "unsupported",
            (_, Some(error)) => error.kind(),
            (_, None) => "success",
        };
        self.note_call(operation, fetch.at, result, error);
        self.note_endpoint(place, &keys, error);
        if is_batch {
            self.note_ability(place, answer.as_ref().err());
        }
        match answer {
            Ok(answers) => {
                for (passenger, answer) in group.into_iter().zip(answers) {
                    match answer {
                        Some(answer) => {
                            let answer = answer.and_then(|version| checked(&passenger.key, version));
                            passenger.tell(Asked {
                                fetch,
                                answer,
                                called: true,
                                probe_at: None,
                                instead_of: None,
                            });
                        }
                        None => self.ask_alone(passenger),
                    }
                }
            }
            Err(BatchError::Unsupported) => {
                for passenger in group {
                    self.ask_alone(passenger);
                }
            }
            Err(BatchError::Failed(error)) => {
                tell_all(group, || Asked {
                    fetch,
                    answer: Err(error.clone()),
                    called: true,
                    probe_at: None,
                    instead_of: None,
                });
            }
        }
    }

    /// A call of its own for one whom no batch answers.
    fn ask_alone(self: &Arc<Self>, passenger: Passenger) {
        let upstream = Arc::clone(self);
        tokio::spawn(async move {
            let Passenger { key, mut teller, departure } = passenger;
            tokio::select! {
                asked = upstream.call_for_refresh(&key, &departure) => drop(teller.send(asked)),
                () = teller.closed() => {}
            }
        });
    }

    fn note_ability(&self, place: &Origin, error: Option<&BatchError>) {
        let is_given_up =
            self.endpoint(place, |endpoint| endpoint.ability.note(error, Instant::now(), fastrand::f64()));
        if !is_given_up {
            return;
        }
        let operation = self.source.batch_operation();
        let (region, role) = (place.region.as_deref(), place.role_arn.as_deref());
        match error {
            Some(BatchError::Failed(error)) => {
                let reason = error.kind();
                tracing::warn!(
                    region,
                    role,
                    operation,
                    reason,
                    "batches keep failing; single calls are made for some minutes"
                );
            }
            _ if self.batch_is_said.swap(true, Ordering::Relaxed) => {}
            _ => {
                tracing::info!(
                    region,
                    role,
                    operation,
                    "batches are not allowed or not known here; single calls are made"
                );
            }
        }
    }
}

impl Passenger {
    fn tell(self, asked: Asked) {
        // Whoever asked may have gone.
        let _ = self.teller.send(asked);
    }
}

fn tell_all(group: Vec<Passenger>, asked: impl Fn() -> Asked) {
    for passenger in group {
        passenger.tell(asked());
    }
}
