//! What one caller may cost the source: a token bucket each, for reads of what is not held and for `no-cache`.
//!
//! The source's own limit (`upstream/limits`) is everybody's. Without this one a single caller who guesses names, or
//! asks for ever new secrets, would use all of it up, and push what others read out of the cache.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Who is charged for a read: a user, or all who come in by one listener where users are not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Payer {
    /// A number of the listener's own.
    pub listener: u32,
    /// The user id of a Unix socket's peer.
    pub uid: Option<u32>,
}

/// From this many accounts on, those that are full again are closed.
const MANY_ACCOUNTS: usize = 1024;

/// The accounts of all callers.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    accounts: Mutex<HashMap<Payer, Account>>,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    /// When all that was taken will have come back.
    full_at: Instant,
    waiting: u32,
}

/// What a caller may take: one call an `interval`, and so many at once as fit into `burst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    pub(super) interval: Duration,
    pub(super) burst: Duration,
}

impl Allowance {
    /// `rate` calls a second, and those of two seconds at once.
    pub(super) fn per_second(rate: u32) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), burst: Duration::from_secs(2) }
    }
}

/// Somebody who waits for its next call.
#[derive(Debug)]
pub(super) struct InLine<'a> {
    budgets: &'a Budgets,
    payer: Payer,
}

impl Budgets {
    /// Takes one call; else says when the next one can be taken.
    pub(super) fn take(&self, payer: Payer, allowance: Allowance, now: Instant) -> Result<(), Instant> {
        let mut accounts = self.lock();
        if accounts.len() >= MANY_ACCOUNTS {
            accounts.retain(|_, account| account.full_at > now || account.waiting > 0);
        }
        let account = accounts.entry(payer).or_insert(Account { full_at: now, waiting: 0 });
        let full_at = account.full_at.max(now) + allowance.interval;
        match full_at.checked_sub(allowance.burst) {
            Some(earliest) if earliest > now => Err(earliest),
            _ => {
                account.full_at = full_at;
                Ok(())
            }
        }
    }

    /// Stands in line for a call that comes within `patience`; `None` where those who do already take them all.
    pub(super) fn stand_in_line(
        &self,
        payer: Payer,
        allowance: Allowance,
        patience: Duration,
        now: Instant,
    ) -> Option<InLine<'_>> {
        let mut accounts = self.lock();
        let account = accounts.entry(payer).or_insert(Account { full_at: now, waiting: 0 });
        if allowance.interval * (account.waiting + 1) > patience {
            return None;
        }
        account.waiting += 1;
        Some(InLine { budgets: self, payer })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Payer, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if let Some(account) = self.budgets.lock().get_mut(&self.payer) {
            account.waiting = account.waiting.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn payer(uid: u32) -> Payer {
        Payer { listener: 0, uid: Some(uid) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_has_a_burst_and_then_a_rate_and_others_have_theirs() {
        let (budgets, allowance) = (Budgets::default(), Allowance::per_second(5));
        let take = |uid| budgets.take(payer(uid), allowance, Instant::now());
        for _ in 0..10 {
            assert_eq!(take(1), Ok(()));
        }
        let next = Instant::now() + SECOND / 5;
        assert_eq!(take(1), Err(next));
        assert_eq!(take(2), Ok(()));
        advance(SECOND / 5).await;
        assert_eq!(take(1), Ok(()));
        assert!(take(1).is_err());
        advance(SECOND * 60).await;
        for _ in 0..10 {
            assert_eq!(take(1), Ok(()), "what is not used does not pile up, and comes back");
        }
        assert!(take(1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_stands_in_line_in_vain() {
        let (budgets, allowance, now) = (Budgets::default(), Allowance::per_second(5), Instant::now());
        let line: Vec<_> = (0..6).map(|_| budgets.stand_in_line(payer(1), allowance, SECOND, now)).collect();
        assert_eq!(line.iter().filter(|place| place.is_some()).count(), 5);
        drop(line);
        assert!(budgets.stand_in_line(payer(1), allowance, SECOND, now).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_that_are_full_again_are_closed() {
        let (budgets, allowance) = (Budgets::default(), Allowance::per_second(5));
        for uid in 0..5000 {
            assert_eq!(budgets.take(payer(uid), allowance, Instant::now()), Ok(()));
            advance(SECOND).await;
        }
        assert!(budgets.lock().len() <= MANY_ACCOUNTS);
    }
}
