//! The head of a hit, kept with what is held: for all who read it within the same second it is the same.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use hyper::header::{HeaderMap, HeaderValue};

use crate::cache::{Answer, Served};

/// The last head that was made for a held value.
#[derive(Default)]
struct Kept(ArcSwapOption<Head>);

struct Head {
    /// In seconds.
    age: u64,
    fields: HeaderMap,
}

/// The header fields of an answer without anything special, by `make` if they are not kept.
pub(super) fn kept(answer: &Answer, make: impl FnOnce() -> HeaderMap) -> HeaderMap {
    let keepsake = answer.held.keepsake.get_or_default::<Kept>();
    let Some(Kept(kept)) = keepsake.filter(|_| answer.served == Served::Hit) else { return make() };
    let age = answer.age.as_secs();
    if let Some(head) = kept.load().as_ref().filter(|head| head.age == age) {
        return head.fields.clone();
    }
    let fields = make();
    kept.store(Some(Arc::new(Head { age, fields: fields.clone() })));
    fields
}

/// A value from text of ours, which is ASCII; what is not becomes empty rather than a panic.
pub(super) fn rendered(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
