//! What paths have led to: from the words of a request to the place of its secret, without cutting, resolving and looking
//! up again what came a moment ago.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::cache::Place;
use crate::secret::SecretKey;

/// As many paths are known at a time; one that falls on the place of another replaces it.
const KNOWN: usize = 8192;

/// Longer paths are not remembered, in bytes: nobody's memory is to be filled with words.
const MAX_PATH: usize = 256;

/// Paths that led to what is held. Good for as long as the groups are the same.
#[derive(Debug)]
pub(super) struct KnownPaths {
    table: Box<[ArcSwapOption<Known>]>,
    hashing: RandomState,
}

/// What a path leads to.
#[derive(Debug)]
pub(super) struct Known {
    path: Box<str>,
    pub(super) key: SecretKey,
    pub(super) place: Place,
}

impl Default for KnownPaths {
    fn default() -> Self {
        Self { table: (0..KNOWN).map(|_| ArcSwapOption::empty()).collect(), hashing: RandomState::default() }
    }
}

impl KnownPaths {
    /// What is made of that which the path led to the last time; `None` if it is not known.
    pub(super) fn find<T>(&self, path: &str, make: impl FnOnce(&Known) -> Option<T>) -> Option<T> {
        self.cell(path).load().as_ref().filter(|known| *known.path == *path).and_then(|known| make(known))
    }

    pub(super) fn remember(&self, path: &str, key: SecretKey, place: Place) {
        if path.len() <= MAX_PATH {
            self.cell(path).store(Some(Arc::new(Known { path: path.into(), key, place })));
        }
    }

    fn cell(&self, path: &str) -> &ArcSwapOption<Known> {
        // What is cut off does not matter: any place will do.
        #[allow(clippy::cast_possible_truncation)]
        let at = self.hashing.hash_one(path.as_bytes()) as usize % KNOWN;
        &self.table[at]
    }
}
