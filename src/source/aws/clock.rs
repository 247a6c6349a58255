//! How far this host's clock is from AWS's, by the `Date` of its answers. AWS refuses what is signed five minutes off.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_sdk_secretsmanager::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_secretsmanager::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_secretsmanager::error::BoxError;
use aws_sdk_secretsmanager::primitives::{DateTime, DateTimeFormat};

/// Looks at every answer, those that are errors too. Clones see the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Arc<Mutex<Option<i64>>>);

impl Clock {
    /// By how many seconds this host was ahead of AWS when it last answered.
    pub(super) fn ahead(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, date: &str, now: SystemTime) {
        let Ok(date) = DateTime::from_str(date, DateTimeFormat::HttpDate) else { return };
        let ahead = DateTime::from(now).secs() - date.secs();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ahead);
    }
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "Clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        #[expect(clippy::disallowed_methods, reason = "the wall clock is what is compared")]
        let now = SystemTime::now();
        if let Some(date) = context.response().headers().get("date") {
            self.note(date, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_date_is_compared_and_anything_else_ignored() {
        let clock = Clock::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        clock.note("yesterday", at(0));
        assert_eq!(clock.ahead(), None);
        clock.note("Sun, 06 Nov 1994 08:49:37 GMT", at(784_111_777 + 90));
        assert_eq!(clock.ahead(), Some(90));
        clock.note("Sun, 06 Nov 1994 08:49:37 GMT", at(784_111_777 - 7));
        assert_eq!(clock.ahead(), Some(-7));
    }
}
